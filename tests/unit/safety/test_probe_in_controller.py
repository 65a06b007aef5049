"""The probe's word among the judge's: what it may add, and what it may never lift."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from shared.safety import Adaptive
from shared.wire import FailureCode
from trainer.safety.combine import Foretold
from trainer.safety.controller import Controller
from trainer.safety.decision import Basis, Decision
from trainer.safety.journal import Journal, replay
from trainer.safety.ledger import Arrival, Failed, ItemKey, Scored, SourceName
from trainer.safety.probe.lessons import Taught

SURE = Foretold(1.0, 1.0)


def method(*sources: Any, **changes: Any) -> Adaptive:
    probe = {"type": "probe", "scan": False}
    staleness = {
        "max_staleness": 2,
        "deadline_s": 5,
        "overdue": "fail_closed",
        **changes.pop("staleness", {}),
    }
    return Adaptive.model_validate({"sources": [*sources, probe], "staleness": staleness, **changes})


TARGET = {"type": "target", "look_ahead": 2}


def read(row: int, score: float | None, method: Adaptive) -> Controller:
    """After one reading of one row's target."""
    controller = Controller(method)
    key = ItemKey(-2, SourceName.TARGET, row)
    controller.open_reading(-2, [(SourceName.TARGET, row)], 0.0)
    fate = Failed(FailureCode.PARSE_ERROR) if score is None else Scored(score)
    controller.receive([Arrival(key, fate)], 0.0)
    for u in (-1, 0):
        controller.open_reading(u, [], 0.0)
    controller.must_wait(0, 0.0)
    return controller


def risk(decision: Decision) -> float:
    return round((decision.betas[0] - 0.1) / 0.9, 9)


@pytest.mark.parametrize(
    ("rule", "trust", "expected"),
    [("max", 1.0, 0.8), ("max", 0.5, 0.4), ("max", 0.0, 0.2), ("mean", 1.0, 0.5), ("mean", 0.0, 0.2)],
)
def test_it_counts_as_far_as_it_is_trusted(rule: str, trust: float, expected: float) -> None:
    controller = read(7, 0.2, method(TARGET, combine=rule))
    decision = controller.decide(0, [7], [Foretold(0.8, trust)])
    assert decision.bases == (Basis.OWN,)
    assert risk(decision) == pytest.approx(expected)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_a_row_that_could_not_be_judged_is_not_let_go(score: float) -> None:
    controller = read(7, None, method(TARGET))
    decision = controller.decide(0, [7], [Foretold(score, 1.0)])
    assert (decision.betas, decision.bases, decision.unread) == ((1.0,), (Basis.CLOSED,), 1)


def test_it_makes_no_dead_judge_fresh() -> None:
    controller = Controller(method("policy"))
    for t in range(4):
        controller.open_reading(t, [(SourceName.POLICY, t)], float(t))
        assert not controller.must_wait(t, 0.0) or not controller.must_wait(t, 5.0)
        decision = controller.decide(t, [t], [Foretold(0.0, 1.0)])
    assert decision.overdue
    assert decision.bases == (Basis.CLOSED,)
    assert decision.staleness == 4


def test_what_the_judge_has_not_read_it_reads_and_else_the_average() -> None:
    controller = Controller(method("policy"))
    controller.open_reading(0, [], 0.0)
    controller.must_wait(0, 0.0)
    controller.ema = 0.5
    decision = controller.decide(0, [1, 2, 3], [Foretold(0.0, 1.0), Foretold(1.0, 0.5), Foretold(1.0, 0.0)])
    assert decision.bases == (Basis.PROBE, Basis.PROBE, Basis.AVERAGE)
    assert decision.betas == pytest.approx((0.1, 0.1 + 0.9 * 0.75, 0.1 + 0.9 * 0.5))


def test_it_is_told_what_was_folded_and_what_was_taken_back() -> None:
    controller = read(7, 0.2, method(TARGET))
    key = ItemKey(-2, SourceName.TARGET, 7)
    assert controller.take_taught() == [Taught(key, 0.2)]
    assert controller.take_taught() == []
    controller.receive([Arrival(key, Failed(FailureCode.UNTRUSTED))], 1.0)
    assert controller.take_taught() == [Taught(key, None)]


def test_what_was_never_folded_teaches_nothing() -> None:
    controller = read(7, None, method(TARGET))
    assert controller.take_taught() == []
    known = Controller(method(TARGET))
    known.preset_targets({3: 0.5})
    assert known.take_taught() == [Taught(ItemKey(-3, SourceName.TARGET, 3), 0.5)]
    without = Controller(Adaptive.model_validate({"sources": [TARGET], "staleness": {"max_staleness": 2}}))
    without.preset_targets({3: 0.5})
    assert without.take_taught() == []


def test_a_run_with_a_probe_replays_without_it() -> None:
    lines: list[bytes] = []
    journal = Journal(method(TARGET), {1: 0.1, 2: 0.9}, lambda call: lines.append(json.dumps(call).encode()))
    for u in (-2, -1, 0):
        journal.open_reading(u, [], 0.0)
    journal.must_wait(0, 0.0)
    journal.decide(0, [1, 2], [Foretold(0.7123456789, 0.9), Foretold(0.0, 0.9)])
    assert replay(lines).difference is None
    assert replay(lines).betas == 2
    touched = [line.replace(b"0.7123456789", b"0.7123456788") for line in lines]
    found = replay(touched).difference
    assert found is not None
    assert found.what == "betas[0]"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sources": ["probe"]}, "learns from the judge's verdicts"),
        ({"sources": ["policy", "probe"]}, "which is the source 'target'"),
        ({"sources": ["target", "probe"], "granularity": "batch"}, "reads single rows"),
    ],
)
def test_settings_that_cannot_work_say_so(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Adaptive.model_validate(settings)


def test_what_is_flagged_is_left_out_where_the_job_says_so_and_the_log_says_which() -> None:
    lines: list[bytes] = []
    scores = {1: 0.1, 2: 0.9, 3: 0.0}
    journal = Journal(
        method(TARGET, flagged="drop", beta_min=0, beta_max=0),
        scores,
        lambda call: lines.append(json.dumps(call).encode()),
    )
    for u in (-2, -1, 0):
        journal.open_reading(u, [], 0.0)
    journal.must_wait(0, 0.0)
    foretold = [Foretold(0.4, 1.0), Foretold(0.0, 1.0), Foretold(0.9, 1.0), Foretold(0.0, 1.0)]
    decision = journal.decide(0, [1, 2, 3, 4], foretold)
    assert decision.kept == (True, False, False, False), "4 has no verdict, and must not train freely"
    assert decision.betas == (0.0,) * 4
    assert json.loads(lines[-1])["dropped"] == [1, 2, 3]
    assert replay(lines).difference is None
    pulled = Journal(method(TARGET), scores, lambda _: None).controller.decide(0, [1, 2, 3])
    assert pulled.kept == (True, True, True)
