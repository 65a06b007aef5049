"""Ranks that start in a second: forks of one process that has imported everything.

A rank is the worker's own `main`, in a process of its own, which can be killed like any other; only its
start is another than torchrun's, whose imports take some ten seconds a time.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared import lifeline
from shared.errors import ServiceError
from shared.processes import stop_process
from trainer.jobs.launcher import LOG_FILE
from trainer.jobs.tail import last_lines
from trainer.training.run_spec import OUTCOME_FILE, RUN_FILE, Outcome

IMPORTED_LATER = (
    "redis.asyncio",
    "setuptools.dist",
    "torch._dynamo.testing",
    "torch._inductor.compile_fx",
    "transformers.models.llama.modeling_llama",
)
"""What a run imports only on its way, and what takes seconds of it."""


class Ranks:
    """One start of a run."""

    def __init__(self, forge: Forge, run_dir: Path, pids: list[int]) -> None:
        self._forge = forge
        self.run_dir = run_dir
        self.pids = pids

    def poll(self) -> bool:
        """Whether all have ended."""
        return bool(self._forge.ask({"ended": self.pids}))

    def kill(self) -> None:
        """SIGKILL to every rank. Returns when they are gone."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while not self.poll():
            time.sleep(0.01)

    def ask_to_stop(self) -> None:
        """SIGTERM to every rank, as torchrun passes it on."""
        for pid in self.pids:
            os.kill(pid, signal.SIGTERM)

    def stop(self) -> Outcome:
        self.ask_to_stop()
        return self.outcome()

    def outcome(self, within_s: float = 300.0) -> Outcome:
        """Waits for the end. Raises ServiceError with the log's end if a rank died or none comes."""
        until = time.monotonic() + within_s
        while not self.poll():
            if time.monotonic() > until:
                self.kill()
                break
            time.sleep(0.05)
        file = self.run_dir / OUTCOME_FILE
        if not file.exists():
            raise ServiceError(f"{self.run_dir} left no outcome:\n{last_lines(self.run_dir / LOG_FILE)}")
        return Outcome.model_validate_json(file.read_text(encoding="utf-8"))


class Forge:
    """The process that ranks are forked from."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def start(self, run_dir: Path, ranks: int, script: Path | None = None) -> Ranks:
        """`run_dir` holds the run.json. What an earlier start has left there is gone on from.

        `script`: whose `main` takes the worker's place.
        """
        (run_dir / OUTCOME_FILE).unlink(missing_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as holder:
            port = holder.getsockname()[1]
        command = {"run": str(run_dir), "ranks": ranks, "port": port, "script": script and str(script)}
        return Ranks(self, run_dir, self.ask(command))

    def ask(self, command: dict[str, Any]) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ServiceError("the forge was started without pipes")
        stdin.write(json.dumps(command).encode() + b"\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise ServiceError(f"the forge ended with {self._process.wait()}")
        return json.loads(answer)


@contextlib.contextmanager
def forge() -> Iterator[Forge]:
    process = subprocess.Popen(
        lifeline.command([sys.executable, "-P", __file__]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={
            **lifeline.environment(os.environ),
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "DS_ACCELERATOR": "cpu",
        },
    )
    try:
        yield Forge(process)
    finally:
        stop_process(process)


# --- the forge's own side ----------------------------------------------------------------------


def serve() -> None:
    from trainer.training import worker

    for module in IMPORTED_LATER:
        importlib.import_module(module)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    for line in sys.stdin:
        command = json.loads(line)
        if "ended" in command:
            answer: Any = all(map(_ended, command["ended"]))
        else:
            answer = [_fork(worker.main, command, rank) for rank in range(command["ranks"])]
        print(json.dumps(answer), file=answers)


_gone: set[int] = set()


def _ended(pid: int) -> bool:
    if pid not in _gone and os.waitpid(pid, os.WNOHANG)[0] == pid:
        _gone.add(pid)
    return pid in _gone


def _fork(work: Any, command: dict[str, Any], rank: int) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.environ[lifeline.PARENT] = str(parent)
        lifeline.die_with_parent()
        log = os.open(Path(command["run"]) / LOG_FILE, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(command["ranks"]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(command["port"]),
        }
        if command["script"] is not None:
            work = runpy.run_path(command["script"])["main"]
        status = work([str(Path(command["run"]) / RUN_FILE)])
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(status)  # not the forge's own clean-up


if __name__ == "__main__":
    serve()
