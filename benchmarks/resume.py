"""SIGKILL at random steps of a run, resumed each time: `python -m benchmarks.resume [KILLS]`.

A `fixed_lag` run of 40 steps beside a real judge service, whole, and killed 20 times at random steps;
every rank is killed at once, without a word. Its betas and its last parameters must be the whole run's,
bit for bit.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.forked import Forge, Ranks, forge
from benchmarks.report import Row, write
from benchmarks.tiny import mixed_rows, tiny_base
from shared.embedded_redis import running_redis
from shared.processes import start_module
from shared.safety import Safety
from shared.training import Training
from trainer.safety.journal import replay
from trainer.training.run_spec import (
    ARTIFACT,
    CONTROLLER_LOG,
    EVENTS_FILE,
    RUN_EVENT,
    RUN_FILE,
    Base,
    Judge,
    MetricsEvent,
    Outcome,
    RunSpec,
)

STEPS = 40
KILLS = 20
RANKS = 2
METHOD = {
    "type": "adaptive",
    "sources": [
        {"type": "target", "look_ahead": 6},
        {"type": "policy", "samples_per_step": 4, "max_new_tokens": 6},
        {"type": "reference"},
    ],
    "staleness": {"max_staleness": 3, "deadline_s": 60, "clock": "fixed_lag"},
}


def main(arguments: Sequence[str]) -> int:
    kills = int(arguments[0]) if arguments else KILLS
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, forge() as ranks:
        directory = Path(scratch)
        base, train_file = tiny_base(directory / "base"), mixed_rows(directory / "train.jsonl")
        with running_redis(directory / "redis") as redis:
            env = {"REDIS_URL": redis.url, "OMP_NUM_THREADS": "1"}
            api = start_module("judge_service.cli", ["api", "--port", "0"], env=env)
            worker = start_module("judge_service.cli", ["worker", "--backend", "rules"], env=env)
            try:
                url = api.ready["url"]
                whole = run_spec(directory / "whole", base, train_file, url)
                ranks.start(whole.run_dir, RANKS).outcome()
                killed = run_spec(directory / "killed", base, train_file, url)
                at = sorted(random.Random(0).sample(range(1, STEPS - 1), kills))
                result = killed_at(ranks, killed, at)
            finally:
                worker.stop()
                api.stop()
        differing = [
            t for t, pair in enumerate(zip(trace(whole), trace(killed), strict=True)) if len(set(pair)) > 1
        ]
        log = (killed.run_dir / CONTROLLER_LOG).read_bytes().splitlines(keepends=True)
        replayed = replay(log)
        rows = [
            Row("kills", result.kills, "", limit=kills, better="higher"),
            Row("steps trained again", result.repeated, "steps"),
            Row("steps whose betas differ", len(differing), "steps", limit=0),
            Row("parameters that differ", parameters_that_differ(whole, killed), "tensors", limit=0),
            Row("differences in the replay of its log", replayed.difference is not None, "", limit=0),
            Row("took", time.monotonic() - began, "s"),
        ]
    return write("resume", rows)


@dataclass(frozen=True)
class Killed:
    outcome: Outcome
    kills: int
    repeated: int
    """Steps that were trained again after a kill."""


def killed_at(ranks: Forge, spec: RunSpec, steps: Sequence[int]) -> Killed:
    """Runs `spec`, kills it once each of `steps` (ascending) has been reached, and takes it to its end."""
    kills = 0
    for step in steps:
        started = ranks.start(spec.run_dir, spec.training.ranks or 1)
        if reaches(started, step):
            started.kill()
            kills += 1
    outcome = ranks.start(spec.run_dir, spec.training.ranks or 1).outcome()
    trained = [event.step for event in metrics(spec)]
    return Killed(outcome, kills, len(trained) - len(set(trained)))


def reaches(run: Ranks, step: int) -> bool:
    """Waits until the run, resumed or not, has trained `step`; False where it ended before."""
    path = run.run_dir / EVENTS_FILE
    while not run.poll():
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        for line in reversed(lines):
            if line.endswith(b"\n") and b'"metrics"' in line:
                event = RUN_EVENT.validate_json(line)
                if isinstance(event, MetricsEvent) and event.step >= step:
                    return True
                break
        time.sleep(0.003)
    return False


def metrics(spec: RunSpec) -> list[MetricsEvent]:
    lines = (spec.run_dir / EVENTS_FILE).read_bytes().splitlines()
    events = []
    for line in lines:
        try:
            event = RUN_EVENT.validate_json(line)
        except ValueError:  # a kill cut it short
            continue
        if isinstance(event, MetricsEvent):
            events.append(event)
    return events


def trace(spec: RunSpec) -> list[tuple[float, ...]]:
    """The average and every beta of each step; the last word on one that was trained again."""
    by_step = {}
    for line in (spec.run_dir / CONTROLLER_LOG).read_bytes().splitlines():
        call = json.loads(line)
        if call["op"] == "decide":
            by_step[call["t"]] = (call["risk"], *call["betas"])
    return [by_step[t] for t in sorted(by_step)]


def parameters_that_differ(one: RunSpec, other: RunSpec) -> int:
    """Tensors of the two artifacts that are not equal bit for bit."""
    first, second = (load_file(spec.run_dir / ARTIFACT / "model.safetensors") for spec in (one, other))
    if first.keys() != second.keys():
        return len(first.keys() ^ second.keys())
    return sum(not torch.equal(first[name], second[name]) for name in first)


def run_spec(
    run_dir: Path, base: Base, train_file: Path, judge_url: str, *, ranks: int = RANKS, **training: object
) -> RunSpec:
    """A run of the tiny base, written down."""
    run_dir.mkdir()
    settings = {
        "adapter": "full", "zero_stage": 1, "steps": STEPS, "learning_rate": 1e-3, "checkpoint_every": 3,
        "ranks": ranks, **training,
    }  # fmt: skip
    spec = RunSpec(
        job_id=f"resume-{run_dir.name}",
        run_dir=run_dir,
        base=base,
        train_file=train_file,
        safety=Safety.model_validate({"method": METHOD}),
        training=Training.model_validate(settings),
        seed=1,
        judge=Judge(url=judge_url, rubric="demo-v1"),
    )
    (run_dir / RUN_FILE).write_text(spec.model_dump_json(), encoding="utf-8")
    return spec


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
