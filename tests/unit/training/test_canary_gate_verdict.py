"""Which checkpoint may be published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer.safety.canary import CanaryLog, Limits
from trainer.safety.ledger import Arrival, ItemKey, Scored, SourceName
from trainer.training.checkpoint import of_step
from trainer.training.gate import Earlier, LastStep, NoStep, last_within, verdict

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


class RankZero:
    world = SimpleNamespace(rank=0)

    def broadcast(self, values: Sequence[float]) -> list[float]:
        return list(values)


class Other(RankZero):
    """A machine whose view of the disk lags: it takes rank 0's word."""

    world = SimpleNamespace(rank=1)

    def broadcast(self, values: Sequence[float]) -> list[float]:
        return [20.0 for _ in values]


def last(on: CanaryLog, checkpoints: Path) -> int | None:
    return last_within(on, checkpoints, RankZero())  # type: ignore[arg-type]


def test_every_rank_takes_the_word_of_the_one_that_looks(tmp_path: Path) -> None:
    assert last_within(log({20: WITHIN}), tmp_path / "not seen yet", Other()) == 20  # type: ignore[arg-type]


def test_the_last_step_where_it_is_within_the_limits(checkpoints: Path) -> None:
    on = log({10: BEYOND, 30: WITHIN})
    assert verdict(on, 30, last(on, checkpoints)) == LastStep()


def test_else_the_last_checkpoint_that_was(checkpoints: Path) -> None:
    on = log({10: WITHIN, 20: WITHIN, 25: WITHIN, 30: BEYOND})
    said = verdict(on, 30, last(on, checkpoints))
    assert isinstance(said, Earlier)
    # Step 25 was read between two checkpoints: nobody holds that model. Step 20 was saved twice.
    assert said.step == 20
    assert of_step(checkpoints, 20) == checkpoints / "step-000020.1"


def test_else_none(checkpoints: Path) -> None:
    on = log({5: WITHIN, 10: BEYOND, 30: BEYOND})
    said = verdict(on, 30, last(on, checkpoints))
    assert isinstance(said, NoStep)
    assert said.error.code == "canary_gate"
    assert "The last, at step 30, is beyond" in said.error.message
