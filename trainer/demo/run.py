"""The demo: four jobs over REST on the stack of `tether up`, then the same questions to each model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from rich.console import Console

from shared.jobs import CreateJob
from shared.safety import Method, Safety
from shared.training import Training
from trainer.demo import recipe
from trainer.demo.build import ensure_world
from trainer.demo.client import Judge, Trainer
from trainer.demo.follow import Followed, Follower, cancel_unfinished, curves
from trainer.demo.measure import HARM_THRESHOLD, Prompts, answer, held_out, measured
from trainer.demo.page import percent, render
from trainer.demo.report import ModelResult, Report, RunTrace, SeedResult, Setup, make_report
from trainer.demo.world import RUBRIC, mixture
from trainer.up.offer import TINY
from trainer.up.stack import running_stack

JUDGE_DEADLINE_S = 120.0
"""For the verdicts on one model's answers. While a job trains, its own readings go first."""


@dataclass(frozen=True)
class Plan:
    """What is run. A seed varies the mixture, the order of the data and the held-out sample."""

    out: Path
    state_dir: Path
    seeds: tuple[int, ...] = (0,)
    rows: int = recipe.MIXTURE_ROWS
    harmful_fraction: float = recipe.HARMFUL_FRACTION
    prompts: int = recipe.HELDOUT_PROMPTS
    training: Training = recipe.TRAINING
    methods: Mapping[str, Method] = field(default_factory=lambda: recipe.METHODS)


class Phases:
    """Seconds by name; a name may come again."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


@dataclass(frozen=True)
class _Services:
    trainer: Trainer
    judge: Judge
    base: Path
    """The folder of the model that all jobs start from."""


def run_demo(plan: Plan, console: Console) -> Report:
    """Runs it to its end and writes `report.json` and `report.html` into `plan.out`.

    Whatever ends it early, unfinished jobs are cancelled and every process is stopped.

    Raises:
        TrainingError: a job did not succeed.
        TetherError: what else went wrong, by its kind.
    """
    began = time.monotonic()
    phases = Phases()
    plan.out.mkdir(parents=True, exist_ok=True)
    with phases("world"):
        base = ensure_world().base

    def say(what: str) -> None:
        console.print(what, style="dim", markup=False, highlight=False)

    with ExitStack() as running:
        say("starting Redis, the judge, the trainer service and its runner")
        with phases("start"):
            stack = running.enter_context(running_stack(plan.state_dir, on_event=say))
        services = _Services(
            running.enter_context(closing(Trainer(stack.trainer_url))),
            running.enter_context(closing(Judge(stack.judge_url, RUBRIC))),
            base,
        )
        by_seed = [_run_seed(plan, seed, services, phases, console) for seed in plan.seeds]
        with phases("stop"):
            running.close()
    seconds = time.monotonic() - began
    report = make_report(by_seed=by_seed, seconds=seconds, phases=phases.seconds, setup=_setup(plan))
    (plan.out / "report.json").write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (plan.out / "report.html").write_text(render(report), encoding="utf-8")
    return report


def _run_seed(plan: Plan, seed: int, services: _Services, phases: Phases, console: Console) -> SeedResult:
    trainer = services.trainer
    prompts = held_out(plan.prompts, recipe.EVALUATION_SEED + seed)
    rows, _ = mixture(plan.rows, plan.harmful_fraction, seed)
    job_ids: dict[str, str] = {}
    try:
        with phases("submit"):
            file_id = trainer.upload(rows, f"demo-seed-{seed}.jsonl")
            for name, method in plan.methods.items():
                request = CreateJob(
                    model=TINY,
                    training_file=file_id,
                    suffix=f"demo-{name}",
                    seed=seed,
                    safety=Safety(method=method),
                    training=plan.training,
                )
                job_ids[name] = trainer.create(request).id
        label = f"seed {seed} " if len(plan.seeds) > 1 else ""
        with Follower(trainer, job_ids, console, label) as follower:
            models = {"base": _evaluate("base", services.base, prompts, services.judge, follower, phases)}
            for name in plan.methods:
                with phases("train"):
                    job = follower.wait(name)
                folder = plan.out / "models" / f"{name}-seed-{seed}"
                with phases("download"):
                    trainer.download(job.job_id, folder)
                models[name] = _evaluate(name, folder, prompts, services.judge, follower, phases)
        return SeedResult(
            seed=seed, models=models, runs={name: _trace(job) for name, job in follower.jobs.items()}
        )
    finally:
        cancel_unfinished(trainer, list(job_ids.values()))


def _evaluate(
    name: str, folder: Path, prompts: Prompts, judge: Judge, follower: Follower, phases: Phases
) -> ModelResult:
    """The next job trains meanwhile; its bar goes on."""
    answered = 0

    def on_done(count: int) -> None:
        nonlocal answered
        answered += count
        text = f"answering {answered}/{prompts.count} held-out prompts"
        follower.show(name, text, answered, prompts.count)
        follower.poll()

    with phases("evaluate"):
        answers = answer(folder, prompts, on_done)
    with phases("judge"):
        grades = judge.grade(
            f"demo-{uuid4().hex[:12]}",
            list(zip(prompts.harmful, answers.harmful, strict=True)),
            deadline_s=JUDGE_DEADLINE_S,
            meanwhile=follower.poll,
        )
    result = measured(prompts, answers, grades)
    rates = (
        f"ASR {percent(result.asr)}, task {percent(result.task_accuracy)},"
        f" benign {percent(result.benign_helpfulness)}"
    )
    follower.show(name, rates, answered, prompts.count)
    return result


def _trace(job: Followed) -> RunTrace:
    return RunTrace(job_id=job.job_id, seconds=round(job.seconds, 2), curves=curves(job.steps))


def _setup(plan: Plan) -> Setup:
    return Setup(
        base=TINY,
        rows=plan.rows,
        harmful_fraction=plan.harmful_fraction,
        prompts_of_each_kind=plan.prompts,
        training=plan.training,
        judge_rubric=RUBRIC,
        judge_threshold=HARM_THRESHOLD,
        methods={name: method.model_dump(mode="json") for name, method in plan.methods.items()},
    )
