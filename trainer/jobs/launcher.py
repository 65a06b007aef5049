"""Starting a run's ranks."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from shared import lifeline
from trainer.jobs.gathering import GATHERING, Gathering
from trainer.training.run_spec import RUN_FILE

LOG_FILE = "worker.log"

JOIN_TIMEOUT_S = 3600
"""How long a start waits for the run's other machines. It holds no device meanwhile."""


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

    @property
    def nodes(self) -> int:
        """Machines that a run may take."""

    def start(self, run_dir: Path, ranks: int, nnodes: int = 1) -> RunProcess:
        """Starts the run that `run_dir` describes; `ranks` over all of its `nnodes`."""


@dataclass(frozen=True)
class Rendezvous:
    """What the operator says of the machines that runs may take, this one included."""

    host: str
    """This machine, as the others reach it."""
    port: int
    nodes: int


class TorchrunLauncher:
    """torchrun on this machine. It ends with this process, and its ranks end with it."""

    def __init__(self, rendezvous: Rendezvous | None = None) -> None:
        self._rendezvous = rendezvous

    @property
    def nodes(self) -> int:
        return 1 if self._rendezvous is None else self._rendezvous.nodes

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

    def start(self, run_dir: Path, ranks: int, nnodes: int = 1) -> RunProcess:
        if nnodes == 1:
            here = ["--nnodes", "1", "--rdzv-endpoint", "127.0.0.1:0"]
            return self._torchrun(run_dir, ranks, here, run_dir / LOG_FILE, None)
        if self._rendezvous is None:
            raise ValueError(f"a run on {nnodes} nodes needs a rendezvous")
        gathering = Gathering(
            host=self._rendezvous.host,
            port=self._rendezvous.port,
            nnodes=nnodes,
            ranks_per_node=ranks // nnodes,
        )
        gathering.write(run_dir)
        first = _meeting(gathering, is_host=True, address=gathering.host)
        return self._torchrun(
            run_dir, gathering.ranks_per_node, first, run_dir / LOG_FILE, run_dir / GATHERING
        )

    def join(self, run_dir: Path, gathering: Gathering, address: str | None) -> RunProcess:
        """This machine's part of a run that another machine's launcher has started.

        `address`: of this machine, as the others reach it; None: its host name.
        """
        other = _meeting(gathering, is_host=False, address=address)
        return self._torchrun(run_dir, gathering.ranks_per_node, other, node_log(run_dir), None)

    def _torchrun(
        self, run_dir: Path, ranks: int, meeting: list[str], log_file: Path, gathering: Path | None
    ) -> RunProcess:
        worker = [sys.executable, "-m", "trainer.training.worker", str(run_dir / RUN_FILE)]
        torchrun = [
            sys.executable, "-m", "torch.distributed.run",
            *meeting, "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d", "--max-restarts", "0",
            "--no-python", *lifeline.command(worker),
        ]  # fmt: skip
        with log_file.open("ab") as log:
            process = subprocess.Popen(
                lifeline.command(torchrun),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self._environment(ranks),
            )
        return _Torchrun(process, gathering)

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


def node_log(run_dir: Path) -> Path:
    """Where a machine that joins keeps what its ranks print: a file of its own, since appends of several
    machines to one get lost."""
    return run_dir / f"worker-{socket.gethostname()}.log"


def _meeting(gathering: Gathering, *, is_host: bool, address: str | None) -> list[str]:
    # torchrun would guess by the host name which machine keeps the store.
    conf = f"is_host={int(is_host)},join_timeout={JOIN_TIMEOUT_S}"
    return [
        "--nnodes", str(gathering.nnodes),
        "--rdzv-id", gathering.id,
        "--rdzv-endpoint", f"{gathering.host}:{gathering.port}",
        "--rdzv-conf", conf,
        *([] if address is None else ["--local-addr", address]),
    ]  # fmt: skip


class _Torchrun:
    def __init__(self, process: subprocess.Popen[bytes], gathering: Path | None) -> None:
        self._process = process
        self._gathering = gathering

    def poll(self) -> int | None:
        status = self._process.poll()
        if status is not None and self._gathering is not None:
            self._gathering.unlink(missing_ok=True)
            self._gathering = None
        return status

    def stop(self) -> None:
        # torchrun passes it on to its ranks, which live in sessions of their own.
        self._process.terminate()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.poll()
