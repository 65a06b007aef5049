from __future__ import annotations

import pytest

from judge_service.worker.pace import REMEMBERED, SAFETY, Pace


def test_nothing_is_known_at_first() -> None:
    pace = Pace()
    assert pace.needs_s == 0
    assert pace.linger_s(0.005) == 0.005


def test_a_hiccup_is_no_pace() -> None:
    pace = Pace()
    for seconds in (0.05, 0.05, 30.0, 0.05):
        pace.took(seconds)
    assert pace.needs_s == pytest.approx(0.05 * SAFETY)


def test_a_slower_judge_is_noticed() -> None:
    pace = Pace()
    for seconds in [0.05] * REMEMBERED + [1.0] * 2:
        pace.took(seconds)
    assert pace.needs_s == pytest.approx(SAFETY)
    pace.nothing_left()
    assert pace.needs_s == 0


def test_a_fast_judge_is_not_kept_waiting_for_a_fuller_batch() -> None:
    fast, slow = Pace(), Pace()
    fast.took(0.001)
    slow.took(1.0)
    assert fast.linger_s(0.005) == 0
    assert slow.linger_s(0.005) == 0.005
