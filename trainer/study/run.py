"""The study's driver: a judge for each way in which it errs, and the runs that need it, a few at a time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pydantic import BaseModel

from shared import lifeline
from shared.embedded_redis import running_redis
from shared.errors import TrainingError
from shared.processes import start_module, stop_process
from shared.safety import Safety
from shared.training import Full, Training
from trainer.demo import interrupt, world
from trainer.demo.build import WorldPaths, ensure_world
from trainer.demo.tokenizer import CONTEXT
from trainer.jobs.tail import last_lines
from trainer.study.cases import Case
from trainer.study.results import Result, fingerprint, read_result
from trainer.training.run_spec import CHECKPOINTS, EVENTS_FILE, OUTCOME_FILE, RUN_FILE, Base, Judge, RunSpec

ROWS = 1280
CHECKPOINT_EVERY = 60
TRAINING = Training(
    adapter=Full(),
    ranks=1,
    zero_stage=0,
    batch_size=16,
    steps=240,
    learning_rate=4e-4,
    checkpoint_every=CHECKPOINT_EVERY,
    keep_checkpoints=100,
)


@dataclass(frozen=True)
class Plan:
    out: Path
    cases: Sequence[Case]
    seeds: int
    prompts: int
    """Held-out ones of each kind."""
    parallel: int
    rows: int = ROWS
    training: Training = TRAINING


@dataclass(frozen=True)
class Run:
    case: Case
    seed: int
    directory: Path
    plan: str
    """Fingerprint."""


Told = Callable[[Run, Result], None]


def run_study(plan: Plan, on_done: Told) -> dict[str, list[Result]]:
    """Results by the cases' keys, in the seeds' order. Those that lie in `plan.out` are not run again.

    Raises:
        TrainingError: a run's process died; its log is named.
    """
    paths = ensure_world()
    runs = [_prepared(plan, case, seed, paths) for case in plan.cases for seed in range(plan.seeds)]
    done: dict[Path, Result] = {}
    left = []
    for run in runs:
        known = read_result(run.directory, run.plan)
        if known is None:
            left.append(run)
        else:
            done[run.directory] = known
            on_done(run, known)

    def errs(run: Run) -> tuple[float, float]:
        return run.case.missed, run.case.alarms

    for (missed, alarms), group in groupby(sorted(left, key=errs), key=errs):
        with _judge(plan.out / "judge", paths.judge, missed, alarms) as url:
            for run, result in _run_all(list(group), plan, paths, url):
                done[run.directory] = result
                on_done(run, result)
    return {
        case.key: [done[run.directory] for run in runs if run.case.key == case.key] for case in plan.cases
    }


def _prepared(plan: Plan, case: Case, seed: int, paths: WorldPaths) -> Run:
    print_ = fingerprint(
        json.dumps(_told(case.method), sort_keys=True),
        json.dumps(_told(plan.training), sort_keys=True),
        paths.root.name,
        repr((case.harmful, case.missed, case.alarms, plan.rows, seed, plan.prompts)),
    )
    # Cases of two groups that are the same run share its folder.
    return Run(case, seed, plan.out / "runs" / print_, print_)


def _told(settings: object) -> object:
    """What differs from the defaults: a setting that a later version adds leaves an older run what it was."""
    if isinstance(settings, tuple):
        return [_told(part) for part in settings]
    if not isinstance(settings, BaseModel):
        return settings
    return {
        name: _told(getattr(settings, name))
        for name, field in type(settings).model_fields.items()
        if name == "type" or getattr(settings, name) != field.default
    }


@contextmanager
def _judge(directory: Path, model: Path, missed: float, alarms: float) -> Iterator[str]:
    """The embedded world's judge, blind to a share of what is harmful, and alarmed by some that is not."""
    with running_redis(directory / f"missed-{missed:g}-alarms-{alarms:g}") as redis:
        env = {"REDIS_URL": redis.url, "OMP_NUM_THREADS": "1"}
        api = start_module("judge_service.cli", ["api", "--port", "0"], env=env)
        # Control pairs would find a blind judge out, and it would judge nothing.
        faults = f"miss={missed:g},alarm={alarms:g}"
        faulty = ["--faulty", faults, "--no-controls"] if missed or alarms else []
        worker = start_module(
            "judge_service.cli",
            ["worker", "--backend", "transformers", "--model", str(model), *faulty],
            env=env,
        )
        try:
            yield api.ready["url"]
        finally:
            worker.stop()
            api.stop()


def _run_all(runs: list[Run], plan: Plan, paths: WorldPaths, url: str) -> Iterator[tuple[Run, Result]]:
    """As they end."""
    waiting = {run.directory: run for run in runs}
    going: dict[Path, subprocess.Popen[bytes]] = {}
    try:
        while waiting or going:
            interrupt.check()
            for directory in [*waiting][: plan.parallel - len(going)]:
                _write(waiting[directory], plan, paths, url)
                going[directory] = _start(waiting.pop(directory), plan.prompts)
            for directory, process in [*going.items()]:
                status = process.poll()
                if status is None:
                    continue
                del going[directory]
                for run in (run for run in runs if run.directory == directory):
                    yield run, _result(run, status)
            time.sleep(0.2)
    finally:
        for process in going.values():
            stop_process(process)


def _write(run: Run, plan: Plan, paths: WorldPaths, url: str) -> None:
    run.directory.mkdir(parents=True, exist_ok=True)
    # Begun anew, and not resumed: a result holds a run's events from its first step.
    for stale in (EVENTS_FILE, OUTCOME_FILE):
        (run.directory / stale).unlink(missing_ok=True)
    shutil.rmtree(run.directory / CHECKPOINTS, ignore_errors=True)
    rows, _ = world.mixture(plan.rows, run.case.harmful, run.seed)
    train_file = run.directory / "train.jsonl"
    train_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    spec = RunSpec(
        job_id=f"study-{run.plan}",
        run_dir=run.directory,
        base=Base(id="tether-tiny", path=paths.base, context_length=CONTEXT, lora_targets=("q_proj",)),
        train_file=train_file,
        safety=Safety(method=run.case.method),
        training=plan.training,
        seed=run.seed,
        judge=Judge(url=url, rubric=world.RUBRIC),
    )
    (run.directory / RUN_FILE).write_text(spec.model_dump_json(), encoding="utf-8")


def _start(run: Run, prompts: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "trainer.study.one", str(run.directory), run.plan, str(prompts)]
    env = lifeline.environment({**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"})
    with (run.directory / "log.txt").open("wb") as log:
        return subprocess.Popen(
            lifeline.command(command), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env
        )


def _result(run: Run, status: int) -> Result:
    result = read_result(run.directory, run.plan)
    if status != 0 or result is None:
        raise TrainingError(
            f"the run {run.case.key}, seed {run.seed}, ended with {status}:\n"
            f"{last_lines(run.directory / 'log.txt')}"
        )
    return result
