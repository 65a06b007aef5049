"""Real torchrun + DeepSpeed runs of a tiny random base, beside a real judge service."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.forked import Forge, Ranks, forge
from benchmarks.tiny import mixed_rows, tiny_base
from shared.embedded_redis import RunningRedis
from shared.processes import Child, start_module
from shared.safety import Safety
from shared.training import Training
from trainer.jobs.launcher import LOG_FILE, RunProcess, TorchrunLauncher
from trainer.training.run_spec import (
    EVENTS_FILE,
    OUTCOME_FILE,
    RUN_EVENT,
    RUN_FILE,
    Base,
    Canaries,
    Judge,
    MessageEvent,
    MetricsEvent,
    Outcome,
    RunSpec,
)

ROWS = 96
NO_JUDGE_URL = "http://127.0.0.1:9"  # the discard port: nothing listens
WITHIN_S = 150.0


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed_rows(tmp_path_factory.mktemp("data") / "train.jsonl", ROWS)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Forge]:
    """Starts runs without torchrun, in a second each."""
    with forge() as started:
        yield started


class JudgeService:
    """API and workers of one test, each killed and started as it likes."""

    def __init__(self, redis_url: str, prefix: str, logs: Path) -> None:
        self._env = {"REDIS_URL": redis_url, "TETHER_JUDGE_KEY_PREFIX": prefix, "OMP_NUM_THREADS": "1"}
        self._logs = logs
        self.children: list[Child] = []
        self.url = NO_JUDGE_URL

    def start(self, *, faulty: str | None = None, port: int = 0, more: Sequence[str] = ()) -> JudgeService:
        api = self._start("api", "--port", str(port))
        self.url = api.ready["url"]
        self.worker(faulty=faulty, more=more)
        return self

    def worker(self, *, faulty: str | None = None, more: Sequence[str] = ()) -> Child:
        faults = [] if faulty is None else ["--faulty", faulty]
        return self._start("worker", "--backend", "rules", "--lease-s", "2", *faults, *more)

    def _start(self, *args: str) -> Child:
        log = self._logs / f"judge-{len(self.children)}.log"
        child = start_module("judge_service.cli", args, env=self._env, log=log)
        self.children.append(child)
        return child

    def stop(self) -> None:
        for child in self.children:
            child.stop()


@pytest.fixture
def judge_service(
    redis_server: RunningRedis, redis_prefix: str, tmp_path: Path
) -> Iterator[Callable[[], JudgeService]]:
    """Makes judge services that know nothing of one another."""
    made: list[JudgeService] = []

    def make() -> JudgeService:
        made.append(JudgeService(redis_server.url, f"{redis_prefix}{len(made)}:", tmp_path))
        return made[-1]

    yield make
    for service in made:
        service.stop()


@pytest.fixture
def judge_on(tmp_path: Path) -> Iterator[Callable[[str], JudgeService]]:
    """Makes a judge service on a Redis of the test's own."""
    made: list[JudgeService] = []

    def make(redis_url: str) -> JudgeService:
        made.append(JudgeService(redis_url, "own:", tmp_path))
        return made[-1]

    yield make
    for service in made:
        service.stop()


@pytest.fixture
def judge(judge_service: Callable[[], JudgeService]) -> JudgeService:
    return judge_service()


@dataclass
class Forked:
    """Ranks of the forge as a launcher's process."""

    ranks: Ranks

    def poll(self) -> int | None:
        return 0 if self.ranks.poll() else None

    def stop(self) -> None:
        self.ranks.ask_to_stop()

    def kill(self) -> None:
        self.ranks.kill()


@dataclass
class Running:
    run_dir: Path
    process: RunProcess

    def wait(self, within_s: float = WITHIN_S) -> Outcome:
        """Until it ends. The log is the failure's message."""
        until = time.monotonic() + within_s
        while self.process.poll() is None:
            if time.monotonic() > until:
                self.process.kill()
                pytest.fail(f"the run did not end within {within_s} s:\n{self.log()}")
            time.sleep(0.05)
        outcome = self.run_dir / OUTCOME_FILE
        if not outcome.exists():
            pytest.fail(f"the run died with {self.process.poll()}:\n{self.log()}")
        return Outcome.model_validate_json(outcome.read_text())

    def wait_for_step(self, step: int, within_s: float = WITHIN_S) -> None:
        until = time.monotonic() + within_s
        while not any(event.step >= step for event in self.metrics()):
            if self.process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"step {step} was not reached:\n{self.log()}")
            time.sleep(0.05)

    def events(self) -> list[Any]:
        path = self.run_dir / EVENTS_FILE
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [RUN_EVENT.validate_json(line) for line in lines if line.endswith(b"\n")]

    def metrics(self) -> list[MetricsEvent]:
        """The last record of each step: a resumed run repeats those after its checkpoint."""
        by_step = {event.step: event for event in self.events() if isinstance(event, MetricsEvent)}
        return [by_step[step] for step in sorted(by_step)]

    def messages(self) -> str:
        return "\n".join(event.message for event in self.events() if isinstance(event, MessageEvent))

    def log(self) -> str:
        return (self.run_dir / LOG_FILE).read_text(errors="replace")[-4000:]


@pytest.fixture
def start_run(
    base: Base, train_file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Running]]:
    """`start_run(name, method, ranks=..., judge_url=..., **training)`; the same name again resumes.

    `forked`: without torchrun, in a second.
    """
    started: list[RunProcess] = []

    def start(
        name: str,
        method: object,
        *,
        ranks: int = 2,
        judge_url: str = NO_JUDGE_URL,
        forked: bool = False,
        canaries: Canaries | None = None,
        **training: Any,
    ) -> Running:
        run_dir = tmp_path / name
        run_dir.mkdir(exist_ok=True)
        (run_dir / OUTCOME_FILE).unlink(missing_ok=True)
        settings = {"adapter": "full", "zero_stage": 1, "steps": 12, "learning_rate": 1e-3, **training}
        settings["ranks"] = ranks
        spec = RunSpec(
            job_id=f"test-{name}",
            run_dir=run_dir,
            base=base,
            train_file=train_file,
            safety=Safety.model_validate({"method": method}),
            training=Training.model_validate(settings),
            seed=1,
            judge=Judge(url=judge_url, rubric="demo-v1"),
            canaries=canaries,
        )
        (run_dir / RUN_FILE).write_text(spec.model_dump_json())
        process: RunProcess
        if forked:
            process = Forked(request.getfixturevalue("ranks").start(run_dir, ranks))
        else:
            process = TorchrunLauncher().start(run_dir, ranks)
        started.append(process)
        return Running(run_dir, process)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
