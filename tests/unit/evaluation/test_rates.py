"""Rates and intervals against values worked out by hand or published."""

from __future__ import annotations

import pytest

from trainer.evaluation.rates import auroc, rate, rate_of, wilson_interval


def test_rate_counts_what_the_rule_holds_for() -> None:
    found = rate(["a", "b", "c", "d"], ["a", "x", "c", "d"], lambda prompt, response: prompt == response)
    assert (found.count, found.total, found.value) == (3, 4, 0.75)
    assert found.low < 0.75 < found.high


def test_wilson_interval() -> None:
    # Newcombe (1998), table I: 81 of 263.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    low, high = wilson_interval(0, 200)
    assert low == 0
    assert high == pytest.approx(0.0188, abs=1e-4)
    assert wilson_interval(200, 200) == pytest.approx((1 - high, 1.0))


@pytest.mark.parametrize(("count", "total"), [(0, 0), (-1, 5), (6, 5)])
def test_no_share_is_an_error(count: int, total: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        rate_of(count, total)


def test_one_answer_a_prompt() -> None:
    with pytest.raises(ValueError, match="argument 2 is"):
        rate(["a", "b"], ["a"], lambda prompt, response: True)


def test_auroc() -> None:
    assert auroc([0.9, 0.8], [0.1, 0.2]) == 1
    assert auroc([0.5], [0.5]) == 0.5
    assert auroc([0.9, 0.1], [0.5]) == 0.5
    with pytest.raises(ValueError, match="needs both"):
        auroc([], [0.1])
