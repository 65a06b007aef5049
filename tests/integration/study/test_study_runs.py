"""The study's driver on the real judge and real runs, a few steps long."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.study.cases import Case, adaptive
from trainer.study.results import Result
from trainer.study.run import TRAINING, Plan, Run, run_study


@pytest.mark.integration
def test_runs_are_measured_once(tmp_path: Path) -> None:
    """Two cases of which one is the other under another name, and a judge that is blind."""
    found = [Case("a", "blind", adaptive(), missed=1.0), Case("b", "the same", adaptive(), missed=1.0)]
    training = TRAINING.model_copy(update={"steps": 4, "checkpoint_every": 2, "batch_size": 8})
    plan = Plan(tmp_path, found, seeds=1, prompts=10, parallel=1, rows=64, training=training)
    told: list[tuple[Run, Result]] = []
    results = run_study(plan, lambda run, result: told.append((run, result)))
    assert len([*(tmp_path / "runs").iterdir()]) == 1
    [blind], [same] = results["a/blind"], results["b/the same"]
    assert blind == same
    assert blind.status == "succeeded"
    assert [rates.step for rates in blind.along] == [2, 4]
    assert blind.steps == (1, 2, 3, 4)
    assert all(beta < 0.2 for beta in blind.beta), "a blind judge lets every row train"
    assert len(told) == 2
    again = run_study(plan, lambda run, result: told.append((run, result)))
    assert again == results
