"""Fewer samples for a judge that cannot keep up, and only for that."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.safety import PolicySource, Staleness
from trainer.safety.pace import WINDOW, Change, Pace, pace_of

K = 3


def pace(samples: int = 8, least: int = 1, ranks: int = 1, **staleness: object) -> Pace:
    policy = PolicySource(samples_per_step=samples, min_samples_per_step=least)
    return pace_of(policy, Staleness.model_validate({"max_staleness": K, **staleness}), ranks)


def run(on: Pace, *, waited_s: float, steps: int) -> list[Change]:
    changes = [on.stepped(waited_s=waited_s, step_s=1.0) for _ in range(steps)]
    return [change for change in changes if change is not None]


def test_steps_that_wait_again_and_again_halve_the_samples_down_to_the_least() -> None:
    on = pace(least=2)
    assert run(on, waited_s=0.5, steps=WINDOW - 1) == []
    assert run(on, waited_s=0.5, steps=1) == [Change(8, 4, WINDOW)]
    # What was asked before is still at the judge: those steps say nothing of the new number.
    assert run(on, waited_s=0.5, steps=K + WINDOW) == []
    assert run(on, waited_s=0.5, steps=1) == [Change(4, 2, WINDOW)]
    assert run(on, waited_s=0.5, steps=100) == []
    assert on.samples == 2


def test_one_outage_is_one_wait_and_changes_nothing() -> None:
    on = pace()
    run(on, waited_s=0.0, steps=5)
    assert run(on, waited_s=60.0, steps=1) == []
    assert run(on, waited_s=0.0, steps=40) == []
    assert on.samples == 8


def test_a_wait_that_costs_next_to_nothing_does_not_count() -> None:
    assert run(pace(), waited_s=0.04, steps=100) == []


def test_it_goes_back_when_the_judge_keeps_up_and_the_more_slowly_the_oftener_it_failed() -> None:
    on = pace()
    run(on, waited_s=0.5, steps=WINDOW)
    settle = K + 1
    assert run(on, waited_s=0.0, steps=settle + 2 * WINDOW - 1) == []
    assert run(on, waited_s=0.0, steps=1) == [Change(4, 6, 0)]
    run(on, waited_s=0.5, steps=settle + WINDOW)
    assert (on.samples, on.patience) == (3, 4)
    assert run(on, waited_s=0.0, steps=settle + 4 * WINDOW) == [Change(3, 5, 0)]
    run(on, waited_s=0.0, steps=1000)
    assert on.samples == 8


@pytest.mark.parametrize("staleness", [{"clock": "fixed_lag"}, {"max_staleness": 0}])
def test_where_time_must_not_count_or_waiting_is_asked_for_the_number_stays(
    staleness: dict[str, object],
) -> None:
    on = pace(**staleness)
    assert run(on, waited_s=0.9, steps=200) == []
    assert on.samples == 8


def test_it_counts_by_rank() -> None:
    on = pace(samples=6, least=3, ranks=4)
    assert (on.samples, on.least) == (2, 1)


def test_least_is_not_more_than_the_samples() -> None:
    with pytest.raises(ValueError, match="min_samples_per_step 5 is above samples_per_step 4"):
        PolicySource(samples_per_step=4, min_samples_per_step=5)


WAITS = st.lists(st.sampled_from([0.0, 0.04, 0.06, 0.9]), max_size=120)


@given(most=st.integers(1, 40), waits=WAITS, cut=st.integers(0, 120))
def test_it_stays_within_its_bounds_and_goes_on_from_its_state(
    most: int, waits: list[float], cut: int
) -> None:
    on, resumed = pace(samples=most), pace(samples=most)
    for step, waited in enumerate(waits):
        if step == cut:
            resumed.restore(json.loads(json.dumps(on.to_state())))
        change = on.stepped(waited_s=waited, step_s=1.0)
        assert 1 <= on.samples <= most
        if change is not None and change.after < change.before:
            assert 2 * change.held_up >= WINDOW
        if change is not None and change.after > change.before:
            assert change.held_up == 0
        if step >= cut:
            assert resumed.stepped(waited_s=waited, step_s=1.0) == change
            assert resumed == on
