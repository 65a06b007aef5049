"""One run over two machines: two network namespaces with a cable between them.

They need root and `ip`. Where these are missing nothing here runs, and pytest's summary (`-ra`) says so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks.forked import Forge
from shared import lifeline
from shared.jobs import CreateJob, File, JobStatus
from shared.processes import stop_process
from tests.waiting import until
from trainer.jobs.layout import Layout
from trainer.jobs.store import Store
from trainer.models.inspect import describe
from trainer.models.registry import PathSource, register
from trainer.training.run_spec import RUN_FILE, Base, read_spec

pytestmark = pytest.mark.integration


def namespaces_refused() -> str | None:
    """Why this machine lets us make no network namespaces; None where it does."""
    if shutil.which("ip") is None:
        return "there is no `ip` (iproute2)"
    name = f"tether-{uuid.uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"ip netns add: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


@dataclass
class Machine:
    """A network namespace; its processes are killed together, as when the power fails."""

    name: str
    address: str
    interface: str

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            lifeline.command(["ip", "netns", "exec", self.name, sys.executable, *argv]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={
                **lifeline.environment(os.environ),
                "GLOO_SOCKET_IFNAME": self.interface,
                "OMP_NUM_THREADS": "1",
            },
        )

    def processes(self) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(pid) for pid in found.stdout.split()]

    def kill(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    refused = namespaces_refused()
    if refused is not None:
        pytest.skip(f"NOT RUN: two machines need network namespaces, and here {refused}")
    run = uuid.uuid4().hex[:6]
    made = [
        Machine(f"tether-{run}-{end}", f"10.77.0.{number}", f"veth{run}{end}")
        for number, end in enumerate("ab", 1)
    ]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for machine in made:
            ip("netns", "add", machine.name)
        first, second = made
        ip("link", "add", first.interface, "netns", first.name, "type", "veth",
           "peer", "name", second.interface, "netns", second.name)  # fmt: skip
        for machine in made:
            ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", machine.interface)
            ip("-n", machine.name, "link", "set", machine.interface, "up")
            ip("-n", machine.name, "link", "set", "lo", "up")
        yield first, second
    finally:
        for machine in made:
            with contextlib.suppress(subprocess.CalledProcessError):
                machine.kill()
                ip("netns", "delete", machine.name)


SETTINGS = {
    "ranks": 2,
    "nnodes": 2,
    "adapter": "full",
    "steps": 40,
    "batch_size": 16,
    "micro_batch_size": 1,
    "checkpoint_every": 10,
    "max_restarts": 2,
}


def test_a_machine_that_was_killed_comes_back_and_the_job_goes_on(
    machines: tuple[Machine, Machine], ranks: Forge, base: Base, train_file: Path, tmp_path: Path
) -> None:
    """And ends where the same ranks on one machine end."""
    first, second = machines
    layout = Layout(tmp_path / "state").create()
    register(layout.models, "tiny", describe("tiny", PathSource(path=base.path)))
    shutil.copy(train_file, layout.file("file-rows"))
    state = ["--state-dir", str(layout.root)]
    join = ["-m", "trainer.jobs.node", *state, "--address", second.address]
    with Store(layout.database) as store:
        store.add_file(
            File(id="file-rows", bytes=1, created_at=1, filename="rows.jsonl", purpose="fine-tune")
        )
        request = CreateJob.model_validate(
            {"model": "tiny", "training_file": "file-rows", "safety": {"method": "sft"}, "training": SETTINGS}
        )
        job = store.create_job(request, request.training, seed=1).id
        runner = first.start(
            "-m", "trainer.jobs.main", *state, "--nodes", "2", "--rdzv-endpoint", f"{first.address}:29400"
        )
        lent = second.start(*join)

        def said(part: str) -> bool:
            return any(part in event.message for event in store.events(job, limit=1000).data)

        def at_step_12() -> bool:
            assert store.job(job).status in (JobStatus.QUEUED, JobStatus.RUNNING)
            return (store.job(job).step or 0) >= 12

        try:
            until(at_step_12, "the job has reached step 12 on two machines")
            assert len(second.processes()) >= 3, "the follower, its torchrun and a rank"
            second.kill()
            lent.wait(10)
            until(lambda: said("restart 1 of 2"), "the runner has noticed")
            lent = second.start(*join)
            until(lambda: store.job(job).status is JobStatus.SUCCEEDED, "the job has succeeded")
        finally:
            stop_process(lent, 60)
            stop_process(runner, 60)
        assert said("Starting the run on 2 ranks of 2 machines; it begins when all have joined")
        assert said("going on from the checkpoint at step 10")
    assert not (layout.run(job) / "gathering.json").exists()

    spec = read_spec(layout.run(job) / RUN_FILE)
    training = spec.training.model_copy(update={"nnodes": 1})
    alone = spec.model_copy(update={"run_dir": tmp_path / "alone", "training": training})
    alone.run_dir.mkdir()
    (alone.run_dir / RUN_FILE).write_text(alone.model_dump_json())
    assert ranks.start(alone.run_dir, 2).outcome().status == "succeeded"
    one, other = (load_file(made.run_dir / "artifact" / "model.safetensors") for made in (spec, alone))
    assert all((one[name] == other[name]).all() for name in one)
