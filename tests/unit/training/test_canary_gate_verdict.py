"""Which checkpoint may be published."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.safety.canary import CanaryLog, Limits
from trainer.safety.ledger import Arrival, ItemKey, Scored, SourceName
from trainer.training.gate import Earlier, LastStep, NoStep, verdict

WITHIN, BEYOND = 0.0, 1.0


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    for name in ("step-000010", "step-000020", "step-000020.1", "step-000030"):
        (tmp_path / name).mkdir()
    return tmp_path


def log(readings: dict[int, float]) -> CanaryLog:
    on = CanaryLog([True], Limits(0.5, 0.5, 0.625, 0.9), 60.0)
    for step, score in readings.items():
        on.open(step, 0.0)
        on.receive([Arrival(ItemKey(step, SourceName.CANARY, 0), Scored(score))], 0.0)
    return on


def test_the_last_step_where_it_is_within_the_limits(checkpoints: Path) -> None:
    assert verdict(log({10: BEYOND, 30: WITHIN}), 30, checkpoints) == LastStep()


def test_else_the_last_checkpoint_that_was(checkpoints: Path) -> None:
    said = verdict(log({10: WITHIN, 20: WITHIN, 25: WITHIN, 30: BEYOND}), 30, checkpoints)
    assert isinstance(said, Earlier)
    # Step 25 was read between two checkpoints: nobody holds that model. Step 20 was saved twice.
    assert (said.step, said.model) == (20, checkpoints / "step-000020.1" / "model")


def test_else_none(checkpoints: Path) -> None:
    said = verdict(log({5: WITHIN, 10: BEYOND, 30: BEYOND}), 30, checkpoints)
    assert isinstance(said, NoStep)
    assert said.error.code == "canary_gate"
    assert "The last, at step 30, is beyond" in said.error.message
