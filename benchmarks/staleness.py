"""What a slow judge costs the training step: `make bench-staleness`.

Waiting is that of a whole run of 240 steps, started as every job is. The step's ratio comes from one
process that trains one rank of the embedded world's base, where blocks of steps alternate between two
guides over the same engine, rows and sampler:

    judged      the real thing: client, judge API, queue, a worker that only *delays*, controller
    unjudged    generates for the same rows at the same steps, and asks nobody

The judge's delay is given in steps: of the unjudged median, measured first. K is 4. The judge's
processes have the second core, so that it delays the step and does not busy it.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.report import Row, write
from shared.embedded_redis import running_redis
from shared.errors import TrainingError
from shared.processes import start_module
from shared.safety import Adaptive, PolicySource, Safety, Staleness, TargetSource
from shared.training import Full, Training
from trainer.data.rows import last_turn
from trainer.demo import world
from trainer.demo.build import ensure_world
from trainer.jobs.launcher import LOG_FILE, TorchrunLauncher
from trainer.jobs.tail import last_lines
from trainer.safety.decision import Action
from trainer.training.assemble import assembled
from trainer.training.distributed import World
from trainer.training.engine import shutdown
from trainer.training.guidance import Guidance
from trainer.training.guide import JudgedBeta
from trainer.training.loop import Pace, Run, train_step
from trainer.training.recorder import Recorder
from trainer.training.run_spec import EVENTS_FILE, RUN_EVENT, RUN_FILE, Base, Judge, MetricsEvent, RunSpec

K = 4
WHOLE = 240
"""Steps of the run whose waiting is measured, from its first step to its last."""
BLOCK = 40
BLOCKS = 4
"""Pairs of blocks after it."""
SETTLE = 2 * K
"""Judged steps after an unjudged block that do not count: the judge caught up meanwhile."""
DELAYS = (0.5, 1.0, 2.0, 3.0)
"""Steps."""
WAIT_LIMIT = 0.01
STEP_LIMIT = 1.10
METHOD = Adaptive(
    sources=(TargetSource(look_ahead=8), PolicySource(samples_per_step=4, max_new_tokens=16)),
    staleness=Staleness(max_staleness=K),
)


def main() -> int:
    torch.set_num_threads(1)
    paths = ensure_world()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        step_s = unjudged_step(directory / "warm", paths.base)
        rows.append(Row("step that generates and asks no judge", step_s, "s"))
        for delay in DELAYS:
            with judge(directory / f"judge-{delay}", delay * step_s) as url:
                measured = alternate(directory / f"blocks-{delay}", paths.base, url)
                waiting = whole_run(directory / f"run-{delay}", paths.base, url)
            name = f"delay {delay:g} steps"
            rows.append(Row(f"{name}: waiting / run", waiting, "", WAIT_LIMIT))
            rows.append(Row(f"{name}: step / unjudged step", measured.ratio, "", STEP_LIMIT))
            rows.append(Row(f"{name}: greatest staleness", measured.staleness, "steps", K))
    shutdown()
    return write("staleness", rows)


@contextmanager
def judge(directory: Path, delay_s: float) -> Iterator[str]:
    with running_redis(directory) as redis:
        env = {"REDIS_URL": redis.url, "OMP_NUM_THREADS": "1"}
        api = start_module("judge_service.cli", ["api", "--port", "0"], env=env)
        faulty = ["--faulty", f"delay_s={delay_s:.4f}"]
        worker = start_module(
            "judge_service.cli",
            ["worker", "--backend", "rules", "--concurrency", "32", *faulty],
            env=env,
        )
        try:
            yield api.ready["url"]
        finally:
            worker.stop()
            api.stop()


def spec_of(directory: Path, base: Path, judge_url: str, *, steps: int, method: Adaptive = METHOD) -> RunSpec:
    directory.mkdir(parents=True)
    mixture, _ = world.mixture(1280, 0.1, seed=0)
    train_file = directory / "train.jsonl"
    train_file.write_text("".join(json.dumps(row) + "\n" for row in mixture), encoding="utf-8")
    return RunSpec(
        job_id=f"bench-{directory.name}",
        run_dir=directory,
        base=Base(id="tether-tiny", path=base, context_length=2048, lora_targets=("q_proj",)),
        train_file=train_file,
        safety=Safety(method=method),
        training=Training(adapter=Full(), ranks=1, zero_stage=1, steps=steps, learning_rate=1e-4),
        seed=0,
        judge=Judge(url=judge_url, rubric="demo-v1"),
    )


@contextmanager
def _run(directory: Path, base: Path, judge_url: str) -> Iterator[Run]:
    spec = spec_of(directory, base, judge_url, steps=10_000)
    rank = World(0, 1, 0, torch.device("cpu"))
    with assembled(spec, rank, Recorder(directory, writes=True), lambda: False) as run:
        yield run


def unjudged_step(directory: Path, base: Path) -> float:
    with _run(directory, base, "http://127.0.0.1:9") as run:
        run.step = 2 * BLOCK
        seconds = [_unjudged(run, back) for back in range(2 * BLOCK, 0, -1)]
    return statistics.median(seconds[BLOCK:])


@dataclass(frozen=True)
class Measured:
    ratio: float
    """Median judged step over median unjudged step."""
    staleness: int
    """Greatest."""


def alternate(directory: Path, base: Path, url: str) -> Measured:
    with _run(directory, base, url) as run:
        start = [_judged_step(run) for _ in range(BLOCK)]
        judged: list[float] = []
        unjudged: list[float] = []
        staleness = [guidance.staleness or 0 for _, guidance in start]
        for _ in range(BLOCKS):
            unjudged += [_unjudged(run, back) for back in range(BLOCK, 0, -1)]
            block = [_judged_step(run) for _ in range(BLOCK)]
            judged += [seconds for seconds, _ in block[SETTLE:]]
            staleness += [guidance.staleness or 0 for _, guidance in block]
    return Measured(
        ratio=statistics.median(judged) / statistics.median(unjudged),
        staleness=max(staleness),
    )


def whole_run(
    directory: Path, base: Path, url: str, *, method: Adaptive = METHOD, steps: int = WHOLE
) -> float:
    """Share of its steps' time that a run waits, started by torchrun as every job is: the scan of the
    first rows is on its way while the model loads."""
    spec = spec_of(directory, base, url, steps=steps, method=method)
    (directory / RUN_FILE).write_text(spec.model_dump_json(), encoding="utf-8")
    process = TorchrunLauncher().start(directory, 1)
    while (status := process.poll()) is None:
        time.sleep(0.2)
    if status != 0:
        raise TrainingError(f"the run ended with {status}:\n{last_lines(directory / LOG_FILE)}")
    lines = (directory / EVENTS_FILE).read_bytes().splitlines()
    done = [event for event in map(RUN_EVENT.validate_json, lines) if isinstance(event, MetricsEvent)]
    return sum(step.wait_s for step in done) / sum(step.step_s for step in done)


def _judged_step(run: Run) -> tuple[float, Guidance]:
    began = time.monotonic()
    rows = run.order.rows(run.step)
    guidance = run.guide.guide(run.step, rows)
    train_step(run, rows, guidance, began, Pace())
    run.step += 1
    return time.monotonic() - began, guidance


def _unjudged(run: Run, back: int) -> float:
    """A step over the rows of `back` steps ago, with the same generation and no judge."""
    began = time.monotonic()
    guide = run.guide
    if not isinstance(guide, JudgedBeta) or guide.asking.sampler is None:
        raise TypeError(f"the benchmark needs a guide with a sampler, not {type(guide).__name__}")
    step = run.step - back
    rows = run.order.rows(step)
    prompts = [last_turn(run.examples[row].row)[0] for row in guide.policy_rows(step)]
    guide.asking.sampler.sample(prompts, step)
    guidance = Guidance(
        action=Action.TRAIN,
        betas=(0.1,) * len(rows),
        stop=False,
        risk=0.0,
        staleness=None,
        overdue=False,
        wait_s=0.0,
        generate_s=0.0,
        bases={},
    )
    train_step(run, rows, guidance, began, Pace())
    return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
