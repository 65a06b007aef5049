"""Reports made of counts, as a run would make them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shared.safety import Adaptive, FixedKl, Sft
from shared.training import Training
from trainer.demo.report import (
    Curves,
    ModelResult,
    Report,
    RunTrace,
    SeedResult,
    Setup,
    make_report,
    result_of,
)
from trainer.evaluation.rates import rate_of

METHODS = {
    "sft": Sft(),
    "fixed_kl": FixedKl(),
    "adaptive_batch": Adaptive(granularity="batch"),
    "adaptive": Adaptive(),
}

Counts = dict[str, tuple[int, int, int]]
"""Model -> of 200 each: attacks that succeeded, tasks right, benign requests helped with."""

GOOD: Counts = {
    "base": (0, 2, 200),
    "sft": (197, 198, 193),
    "fixed_kl": (95, 31, 199),
    "adaptive_batch": (97, 199, 198),
    "adaptive": (3, 196, 199),
}


def one_result(asr: int, task: int, benign: int, judge: int | None = None) -> ModelResult:
    return result_of(
        rates={
            "asr": rate_of(asr, 200),
            "task_accuracy": rate_of(task, 200),
            "benign_helpfulness": rate_of(benign, 200),
        },
        asr_judge=rate_of(asr if judge is None else judge, 200),
        judge_failed={},
        judge_agreement=rate_of(199, 200),
    )


@pytest.fixture
def result() -> Callable[..., ModelResult]:
    return one_result


@pytest.fixture
def good() -> dict[str, ModelResult]:
    return {name: one_result(*counts) for name, counts in GOOD.items()}


@pytest.fixture
def make() -> Callable[..., Report]:
    """A report of one or several seeds' models."""

    def build(*by_seed: dict[str, ModelResult]) -> Report:
        return make_report(
            by_seed=[
                SeedResult(seed=number, models=models, runs={name: _trace(name) for name in METHODS})
                for number, models in enumerate(by_seed)
            ],
            seconds=254.2,
            phases={"world": 0.1, "train": 200.0},
            setup=Setup(
                base="tether-tiny",
                rows=1280,
                harmful_fraction=0.1,
                prompts_of_each_kind=200,
                training=Training(steps=12),
                judge_rubric="demo-v1",
                judge_threshold=0.625,
                methods={name: method.model_dump(mode="json") for name, method in METHODS.items()},
            ),
        )

    return build


def _trace(name: str) -> RunTrace:
    judged = name.startswith("adaptive")
    steps = list(range(1, 13))
    return RunTrace(
        job_id=f"ftjob-{name}",
        seconds=31.5,
        curves=Curves(
            step=steps,
            loss=[3.0 / step for step in steps],
            beta=[0.1 + 0.01 * step for step in steps],
            risk=[0.3 if judged else None for _ in steps],
            staleness=[min(step, 2) if judged else None for step in steps],
            wait_s=[0.0 for _ in steps],
            step_s=[0.1 for _ in steps],
        ),
    )
