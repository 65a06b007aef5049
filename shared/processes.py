"""Services of ours as children: started on a lifeline, awaited until they say that they are ready.

A service prints one JSON line on stdout, `{"event": "ready", ...}`, once it can be used.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shared import lifeline
from shared.errors import ServiceError


@dataclass
class Child:
    """A service of ours that runs."""

    process: subprocess.Popen[bytes]
    ready: dict[str, Any]
    """Its ready line."""

    def stop(self, grace_s: float = 10.0) -> int:
        """SIGTERM, after `grace_s` SIGKILL; the exit status."""
        return stop_process(self.process, grace_s)


def stop_process(process: subprocess.Popen[bytes], grace_s: float = 10.0) -> int:
    """SIGTERM, after `grace_s` SIGKILL; the exit status. Safe on one that has ended."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
    status = process.wait()
    if process.stdout is not None:
        process.stdout.close()
    return status


def start_module(
    module: str,
    args: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    ready_s: float = 60.0,
    log: Path | None = None,
) -> Child:
    """Start `python -m module args` and wait for its ready line.

    `env` is added to this process's environment. stderr is appended to `log`, or dropped after start.

    Raises:
        ServiceError: it ended, or was not ready within `ready_s`; holds the end of its stderr. It is
            not running then.
    """
    with _stderr_file(log) as stderr:
        began = stderr.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            lifeline.command([sys.executable, "-m", module, *args]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=lifeline.environment({**os.environ, **(env or {})}),
        )
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(ready_s, give_up)
        timer.start()
        try:
            ready = _read_ready(process)
        finally:
            timer.cancel()
        if ready is not None and not late.is_set():
            return Child(process, ready)
        status = stop_process(process)
        stderr.seek(began)
        said = stderr.read().decode("utf-8", "replace").strip()[-2000:]
    name = " ".join([module, *args[:1]])
    what = f"was not ready within {ready_s:g} s" if late.is_set() else f"ended with status {status}"
    raise ServiceError(f"{name} {what} at its start; it said: {said or '(nothing)'}")


@contextlib.contextmanager
def _stderr_file(log: Path | None) -> Iterator[IO[bytes]]:
    if log is None:
        with tempfile.TemporaryFile() as file:
            yield file
    else:
        with log.open("a+b") as file:
            yield file


def _read_ready(process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
    """The ready line; None when stdout ended without one."""
    assert process.stdout is not None
    for line in process.stdout:
        with contextlib.suppress(json.JSONDecodeError):
            said = json.loads(line)
            if isinstance(said, dict) and said.get("event") == "ready":
                return said
    return None


def print_ready(role: str, **fields: object) -> None:
    """Say on stdout that this process can be used now."""
    print(json.dumps({"event": "ready", "role": role, **fields, "pid": os.getpid()}), flush=True)
