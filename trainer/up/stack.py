"""All of Tether on this machine: Redis, the judge's API and workers, the trainer's API, the runner."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.embedded_redis import EmbeddedRedis, RedisPlan, plan_redis
from shared.errors import ConfigError, ServiceError
from trainer.jobs.judge_health import JudgeAddress
from trainer.jobs.layout import Layout
from trainer.up.children import ModuleChild, RedisChild, Service
from trainer.up.offer import offer_tiny
from trainer.up.ports import HOST, claim
from trainer.up.supervisor import Supervisor

RUBRIC = "demo-v1"
"""The one that the embedded world's judge was taught."""

READY_S = 180.0
"""A cold start imports torch, perhaps beside another one."""

GRACE_S = 15.0
RUNNER_GRACE_S = 60.0
"""The runner first lets its run write a checkpoint."""


@dataclass(frozen=True)
class Stack:
    trainer_url: str
    """OpenAI's `base_url` is this with `/v1`."""
    judge_url: str
    state_dir: Path
    logs_dir: Path
    supervisor: Supervisor

    @property
    def pids(self) -> dict[str, int]:
        """Name of a child -> its process, now."""
        return self.supervisor.pids


@contextlib.contextmanager
def running_stack(
    state_dir: Path,
    *,
    trainer_port: int = 0,
    judge_port: int = 0,
    judge_url: str | None = None,
    judge_workers: int = 1,
    judge_faulty: str | None = None,
    on_event: Callable[[str], None] = print,
) -> Iterator[Stack]:
    """The whole stack, ready; stopped when the block is left. A port of 0 takes a free one.

    With `judge_url` the judge runs elsewhere, and neither Redis nor a judge is started.
    Raises ServiceError or ConfigError before anything is started, or with everything stopped again.
    """
    if judge_url is not None and judge_faulty is not None:
        raise ConfigError("--judge-faulty is for the judge that is started here, not for one at --judge-url")
    layout = Layout(state_dir.absolute()).create()
    layout.logs.mkdir(exist_ok=True)
    with _only_one(layout):
        # Everything that can be wrong is looked at before anything is made or started.
        trainer_port = claim(trainer_port, "--trainer-port")
        if judge_url is None:
            judge_port = claim(judge_port, "--judge-port")
            if judge_port == trainer_port:
                raise ConfigError(f"--trainer-port and --judge-port are both {judge_port}; choose two")
            plan = plan_redis(layout.root)
            judge_model = offer_tiny(layout, on_event)
            judge_url = f"http://{HOST}:{judge_port}"
            redis = _redis(plan)
            judge = _judge(plan, judge_port, judge_workers, judge_model, judge_faulty, layout)
        else:
            offer_tiny(layout, on_event)
            redis, judge = [], []
            if (problem := JudgeAddress(judge_url).problem()) is not None:
                on_event(f"note: {problem}; jobs that ask it will wait for it")
        # Judge and trainer need not wait for each other, and each imports for seconds.
        waves = [redis, [*judge, *_trainer(trainer_port, judge_url, layout)]]
        supervisor = Supervisor(waves, on_event)
        supervisor.start()
        try:
            yield Stack(f"http://{HOST}:{trainer_port}", judge_url, layout.root, layout.logs, supervisor)
        finally:
            supervisor.stop()


@contextlib.contextmanager
def _only_one(layout: Layout) -> Iterator[None]:
    """Two stacks on one state directory would run each other's jobs."""
    with (layout.root / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise ServiceError(
                f"`tether up` already runs on {layout.root} (process {lock.read().strip()});"
                " stop it, or choose another --state-dir"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _redis(plan: RedisPlan) -> list[Service]:
    if not isinstance(plan, EmbeddedRedis):
        return []
    return [Service("redis", lambda: RedisChild(plan), plan.log, READY_S, GRACE_S)]


def _judge(
    plan: RedisPlan, port: int, workers: int, model: Path, faulty: str | None, layout: Layout
) -> list[Service]:
    env = {"REDIS_URL": plan.url}
    threads = max(1, (os.cpu_count() or 1) // 2 // max(1, workers))
    worker = [
        "worker", "--backend", "transformers", "--model", str(model), "--rubric", RUBRIC,
        "--threads", str(threads), *(["--faulty", faulty, "--no-controls"] if faulty else []),
    ]  # fmt: skip
    api = ["api", "--host", HOST, "--port", str(port)]
    return [
        _module("judge-api", "judge_service.cli", api, env, layout),
        *(
            _module(f"judge-worker-{number}", "judge_service.cli", worker, env, layout)
            for number in range(workers)
        ),
    ]


def _trainer(port: int, judge_url: str, layout: Layout) -> list[Service]:
    state = ["--state-dir", str(layout.root)]
    api = [*state, "--host", HOST, "--port", str(port)]
    runner = [*state, "--judge-url", judge_url, "--rubric", RUBRIC]
    return [
        _module("trainer-api", "trainer.api.main", api, {}, layout),
        _module("runner", "trainer.jobs.main", runner, {}, layout, grace_s=RUNNER_GRACE_S),
    ]


def _module(
    name: str,
    module: str,
    args: list[str],
    env: dict[str, str],
    layout: Layout,
    *,
    grace_s: float = GRACE_S,
) -> Service:
    log = layout.logs / f"{name}.log"
    return Service(name, lambda: ModuleChild(module, args, env, log), log, READY_S, grace_s)
