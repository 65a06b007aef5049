"""The breaker's rules, without a worker."""

from __future__ import annotations

import pytest

from judge_service.backends.base import Grade, GradeFailure
from judge_service.worker.breaker import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    Closed,
    ErrorRate,
    HalfOpen,
    Open,
    Reason,
    describe,
    opened,
    pause_s,
    probe_failed,
    probe_passed,
    probing,
)
from shared.wire import FailureCode

GOOD = Grade(0.0, 1)
BROKEN = GradeFailure(FailureCode.SERVER_ERROR, "made to fail")


def test_it_opens_probes_and_closes() -> None:
    state = opened(Closed(1.0), Reason.BACKEND_UNAVAILABLE, "refused", 5.0)
    assert state == Open(Reason.BACKEND_UNAVAILABLE, "refused", 5.0)
    half = probing(state)
    assert half == HalfOpen(state)
    again = probe_failed(half, Reason.BACKEND_UNAVAILABLE, "refused again", 7.0)
    assert again == Open(Reason.BACKEND_UNAVAILABLE, "refused again", 5.0, probes=1)
    assert probe_passed(probing(again), 9.0) == Closed(9.0)


def test_a_control_round_leaves_a_closed_one_closed() -> None:
    assert probing(Closed(1.0)) == Closed(1.0)
    assert probe_passed(Closed(1.0), 9.0) == Closed(1.0)


def test_an_outage_does_not_hide_that_the_judge_is_not_trusted() -> None:
    untrusted = opened(Closed(1.0), Reason.JUDGE_UNTRUSTED, "missed", 2.0)
    assert opened(untrusted, Reason.BACKEND_UNAVAILABLE, "refused", 3.0) == untrusted
    away = opened(Closed(1.0), Reason.BACKEND_UNAVAILABLE, "refused", 2.0)
    assert opened(away, Reason.JUDGE_UNTRUSTED, "missed", 3.0) == Open(Reason.JUDGE_UNTRUSTED, "missed", 2.0)


def test_pauses_double_up_to_a_bound() -> None:
    pauses = [pause_s(n) for n in range(2000)]
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert max(pauses) == pauses[-1] == LONGEST_PAUSE_S


@pytest.mark.parametrize(
    ("state", "name"),
    [
        (Closed(1.0), "closed"),
        (Open(Reason.STARTING, "", 1.0), "open"),
        (HalfOpen(Open(Reason.STARTING, "", 1.0)), "half_open"),
    ],
)
def test_it_says_how_it_stands(state: Closed | Open | HalfOpen, name: str) -> None:
    said = describe(state)
    assert (said["state"], said["since"]) == (name, 1.0)
    assert set(said) == {"state", "reason", "detail", "since", "probes"}


def test_items_that_fail_among_others_are_no_trouble() -> None:
    rate = ErrorRate()
    for _ in range(100):
        rate.note([BROKEN, GOOD])
    assert rate.trouble() is None


def test_few_failures_are_no_rate() -> None:
    rate = ErrorRate()
    rate.note([BROKEN] * (ErrorRate.LEAST - 1))
    assert rate.trouble() is None
    rate.note([BROKEN])
    assert (
        rate.trouble()
        == f"{ErrorRate.LEAST} of the last {ErrorRate.LEAST} answers were failures of the judge"
    )


def test_what_the_judge_declined_is_not_its_failure() -> None:
    rate = ErrorRate()
    rate.note([GradeFailure(FailureCode.REFUSED, "declined")] * 100)
    assert rate.trouble() is None


def test_batches_that_fail_whole_count_in_a_row() -> None:
    rate = ErrorRate()
    for _ in range(2):
        rate.note([BROKEN], whole_batch_failed=True)
    rate.note([GOOD])
    rate.note([BROKEN], whole_batch_failed=True)
    assert rate.trouble() is None
    for _ in range(2):
        rate.note([BROKEN], whole_batch_failed=True)
    assert rate.trouble() == "the last 3 batches failed whole"
    rate.reset()
    assert rate.trouble() is None
