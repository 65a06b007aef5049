"""Starting a run's ranks."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Protocol

from shared import lifeline
from trainer.training.run_spec import RUN_FILE

LOG_FILE = "worker.log"


class RunProcess(Protocol):
    def poll(self) -> int | None:
        """The exit status, or None while it runs."""

    def stop(self) -> None:
        """Ask it to write a checkpoint and end."""

    def kill(self) -> None:
        """End it now, every rank of it. Returns when it is gone."""


class Launcher(Protocol):
    @property
    def devices(self) -> int:
        """Accelerators of this machine; 0 where the ranks run on its processors."""

    def start(self, run_dir: Path, ranks: int) -> RunProcess:
        """Starts the run that `run_dir` describes."""


class TorchrunLauncher:
    """One torchrun on this machine. It ends with this process, and its ranks end with it."""

    @cached_property
    def devices(self) -> int:
        # In a process of its own: torch stays out of the runner, and CUDA out of what it forks.
        counted = subprocess.run(
            [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"],
            env=lifeline.environment(os.environ),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return int(counted.stdout.split()[-1])

    def start(self, run_dir: Path, ranks: int) -> RunProcess:
        worker = [sys.executable, "-m", "trainer.training.worker", str(run_dir / RUN_FILE)]
        torchrun = [
            sys.executable, "-m", "torch.distributed.run",
            "--nnodes", "1", "--nproc-per-node", str(ranks),
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0",
            "--max-restarts", "0",
            "--no-python", *lifeline.command(worker),
        ]  # fmt: skip
        with (run_dir / LOG_FILE).open("ab") as log:
            process = subprocess.Popen(
                lifeline.command(torchrun),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self._environment(ranks),
            )
        return _Torchrun(process)

    def _environment(self, ranks: int) -> dict[str, str]:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment = lifeline.environment(os.environ)
        # A share of the cores stays for the judge and the services. Threads that share a core with
        # another process must sleep while they wait: spinning made a step of two threads 7 to 10 times
        # as slow as one thread's.
        environment["OMP_NUM_THREADS"] = str(max(1, cores // (ranks + 1)))
        environment.setdefault("OMP_WAIT_POLICY", "passive")
        if self.devices == 0:
            environment["DS_ACCELERATOR"] = "cpu"
        return environment


class _Torchrun:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        # torchrun passes it on to its ranks, which live in sessions of their own.
        self._process.terminate()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
