"""The eight guarantees of bounded staleness, one test each, by name.

Their interplay is followed exhaustively in test_staleness_exhaustive.py and by property in
test_rules_by_property.py; on real processes in tests/integration/training.
"""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest

from shared.safety import Adaptive
from shared.wire import FailureCode, ScoreKind
from trainer.safety.controller import Controller
from trainer.safety.decision import Action, Basis
from trainer.safety.journal import Journal, replay
from trainer.safety.ledger import Arrival, Failed, Fate, ItemKey, Scored, SourceName
from trainer.safety.seen import Seen
from trainer.training.oversight import Oversight

TARGET, POLICY = SourceName.TARGET, SourceName.POLICY
CODES = list(FailureCode)


def adaptive(sources: tuple[str, ...] = ("policy",), **staleness: Any) -> Adaptive:
    named = {"policy": {"type": "policy"}, "target": {"type": "target", "look_ahead": 4}}
    given = {"max_staleness": 2, "deadline_s": 10, **staleness}
    return Adaptive.model_validate({"sources": [named[name] for name in sources], "staleness": given})


def said(u: int, row: int, fate: Fate, source: SourceName = POLICY) -> Arrival:
    return Arrival(ItemKey(u, source, row), fate)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0


def until_decided(controller: Controller, t: int, clock: Clock, rows: list[int]) -> Any:
    """Waits as a run does, with a judge that says nothing meanwhile. Returns (decision, seconds waited)."""
    began = clock.now
    controller.receive([], clock.now)
    while controller.must_wait(t, clock.now):
        clock.now += 0.5
        controller.receive([], clock.now)
    return controller.decide(t, rows), clock.now - began


@pytest.mark.parametrize("clock", ["opportunistic", "fixed_lag"])
def test_1_bound(clock: str) -> None:
    """At use time staleness <= K, or the overdue policy acts; K = 0 is the synchronous judge."""
    for k, alive in itertools.product((0, 2), (True, False)):
        controller = Controller(adaptive(max_staleness=k, clock=clock, overdue="fail_closed"))
        time = Clock()
        for t in range(8):
            controller.open_reading(t, [(POLICY, t)], time.now)
            if alive:  # as late as can be
                controller.receive([said(t - k, t - k, Scored(0.5))], time.now)
            decision, _ = until_decided(controller, t, time, [t - k])
            assert decision.overdue or decision.staleness <= k
            assert decision.overdue == (not alive and t >= k)
            if k == 0 and alive:
                assert (decision.staleness, decision.bases) == (0, (Basis.OWN,))


def test_2_overdue_is_latched_and_each_use_is_told_with_its_cause() -> None:
    """One wait of deadline_s an outage; park parks, abort ends; what trained unread is counted."""
    for policy, action, beta in [
        ("fail_closed", Action.TRAIN, 1.0),
        ("hold", Action.TRAIN, 0.1 + 0.9 * 0.95),
        ("park", Action.PARK, 1.0),
        ("abort", Action.ABORT, 1.0),
    ]:
        events: list[tuple[str, str, Any]] = []
        controller = Controller(adaptive(overdue=policy))
        told = Oversight(
            controller.method.staleness, controller, lambda *event, into=events: into.append(event)
        )
        clock = Clock()
        waits, overdue = [], []
        for t in range(16):
            clock.now += 2.0
            controller.open_reading(t, [(POLICY, t)], clock.now)
            if t == 0 or t >= 9:
                controller.receive([said(t, t, Scored(0.0))], clock.now)
            decision, waited = until_decided(controller, t, clock, [100])
            told.decided(t, decision, waited, None)
            waits.append(waited)
            if decision.overdue:
                overdue.append(t)
                assert decision.action is action
                assert decision.betas == pytest.approx((beta,))
        away = [t for t, waited in enumerate(waits) if waited > 0]
        assert away == [3]
        assert overdue == list(range(3, overdue[-1] + 1))
        assert len(overdue) > 5
        assert waits[3] <= 10.5
        assert [(level, "readings are in again" in message) for level, message, _ in events] == [
            ("warn", False),
            ("info", True),
        ]
        assert f"{policy}: " in events[0][1]
        assert events[0][2]["cause"] == "The verdicts since readings were last fresh failed: timeout 3."
        trained = action is Action.TRAIN
        assert controller.counts.unread == (len(overdue) if trained else 0)
        assert controller.unread_past_limit(planned=100) == trained


def test_3_a_failure_is_never_a_number() -> None:
    """Failed verdicts of whatever code weigh nothing, and do not make a judge look fresh."""
    for code in CODES:
        with_it, without = Controller(adaptive()), Controller(adaptive())
        for controller, rows in ((with_it, [0, 1]), (without, [0])):
            controller.open_reading(0, [(POLICY, row) for row in rows], 0)
            controller.receive([said(0, 0, Scored(0.25)), said(0, 1, Failed(code))][: len(rows)], 0)
            assert not controller.must_wait(0, 0)
        assert with_it.ema == without.ema
        assert with_it.decide(0, [1]).bases == (Basis.AVERAGE,)
        dead = Controller(adaptive(overdue="fail_closed"))
        for t in range(4):
            dead.open_reading(t, [(POLICY, t)], 0)
            dead.receive([said(t, t, Failed(code))], 0)
            assert not dead.must_wait(t, 0)
        assert dead.decide(3, [9]).overdue
        assert dead.failing == {code.value: 4}


def test_4_with_fixed_lag_timing_changes_nothing() -> None:
    """The same scores in a hundred orders and delays: one beta trace. Opportunistic folds what has come."""

    def trace(clock: str, seed: int) -> list[tuple[float, ...]]:
        controller = Controller(adaptive(("target", "policy"), clock=clock))
        rng, scores = random.Random(seed), random.Random(7)
        out: list[Arrival] = []
        betas = []
        for u in range(-4, 12):
            items = [(TARGET, u + 4), (POLICY, u + 2)] if u >= 0 else [(TARGET, u + 4)]
            controller.open_reading(u, items, 0)
            out += [said(u, row, Scored(scores.random()), source) for source, row in items]
            if u < 0:
                continue
            while True:
                rng.shuffle(out)
                come = rng.randint(0, len(out))
                controller.receive(out[:come], 0)
                out = out[come:]
                if not controller.must_wait(u, 0):
                    break
            decision = controller.decide(u, [u])
            betas.append((decision.risk, *decision.betas))
        return betas

    assert len({tuple(trace("fixed_lag", seed)) for seed in range(100)}) == 1
    assert len({tuple(trace("opportunistic", seed)) for seed in range(100)}) > 1


def test_5_all_ranks_agree() -> None:
    """What a rank is told in the exchange is all it decides by: rank 0's clock and the same arrivals in the
    same order give the same bits, whichever rank heard of a verdict."""
    method = adaptive(("target", "policy"), overdue="fail_closed")
    ranks = [Journal(method, {}, lambda _line: None) for _ in range(4)]
    rng = random.Random(3)
    now = 0.0
    for t in range(20):
        heard: list[list[Arrival]] = [[] for _ in ranks]
        for key in [
            ItemKey(u, *item)
            for u, reading in ranks[0].controller.readings.items()
            for item in sorted(reading.outstanding)
        ]:
            if rng.random() < 0.5:
                fate = Scored(rng.random()) if rng.random() < 0.8 else Failed(rng.choice(CODES))
                heard[key.row % 4].append(Arrival(key, fate))
        gathered = [arrival for mine in heard for arrival in mine]
        decisions = set()
        now += 2.0
        for rank in ranks:
            rank.open_reading(t, [(TARGET, t % 7), (POLICY, t % 5), (POLICY, (t + 1) % 5)], now)
            rank.receive(gathered, now)
            waits = rank.must_wait(t, now)
            decisions.add((waits, rank.decide(t, list(range(7))), json.dumps(rank.checkpoint(t))))
        assert len(decisions) == 1


def test_6_the_controller_is_in_the_checkpoint() -> None:
    """Killed after any step and resumed, a fixed_lag run repeats the uninterrupted run's betas, and the log
    of both halves replays."""

    def go(first: int, saved: Any, log: list[bytes]) -> tuple[list[tuple[float, ...]], dict[int, Any]]:
        method = adaptive(("target", "policy"), clock="fixed_lag")
        journal = Journal(method, {}, lambda line: log.append(json.dumps(line).encode()))
        betas, states = [], {}
        if saved is not None:
            journal.restore(json.loads(json.dumps(saved)), t=first, now=1e6)
        for t in range(first - 4 if saved is None else first, 14):
            if t < 0 or not journal.controller.is_open(t):
                policy = [(POLICY, (t + 2) % 9)] if t >= 0 else []
                journal.open_reading(t, [(TARGET, (t + 4) % 9), *policy], 1e6)
            if t < 0:
                continue
            states[t] = journal.checkpoint(t)
            out = [
                ItemKey(u, *item)
                for u, reading in journal.controller.readings.items()
                for item in sorted(reading.outstanding)
            ]
            random.Random(first + t).shuffle(out)
            journal.receive([Arrival(key, Scored(score_of(key))) for key in out], 1e6)
            assert not journal.must_wait(t, 1e6)
            betas.append(journal.decide(t, [t % 9, (t + 1) % 9]).betas)
        return betas, states

    def score_of(key: ItemKey) -> float:
        return random.Random(f"{key}").random()

    whole_log: list[bytes] = []
    whole, states = go(0, None, whole_log)
    for killed_at in range(1, 14):
        log = list(whole_log)
        again, _ = go(killed_at, states[killed_at], log)
        assert again == whole[killed_at:]
        found = replay(log)
        assert (found.difference, found.resumed_at) == (None, [killed_at])


def test_7_a_judge_that_answers_but_is_wrong() -> None:
    """What turns out untrusted is not folded; if it was, the row trains at beta_max until it is read again,
    and an event says so. Scores of a second kind are not compared with the first."""
    events: list[Any] = []
    controller = Controller(adaptive(("target",), clock="fixed_lag"))
    oversight = Oversight(controller.method.staleness, controller, lambda *event: events.append(event))
    untrusted = Failed(FailureCode.UNTRUSTED)
    for u in range(-4, 1):
        controller.open_reading(u, [(TARGET, u + 4)], 0)
        controller.receive([said(u, u + 4, Scored(0.0, ScoreKind.LABEL_PROBABILITY), TARGET)], 0)
    assert not controller.must_wait(0, 0)
    assert controller.decide(0, [0, 1, 2]).betas == pytest.approx((0.1, 0.1, 0.1))
    # Rows 0 to 2 are folded, rows 3 and 4 are not yet.
    controller.receive([said(-2, 2, untrusted, TARGET), said(-1, 3, untrusted, TARGET)], 0)
    controller.open_reading(1, [(TARGET, 5)], 0)
    controller.receive([said(1, 5, Scored(0.0, ScoreKind.CLASSIFIER), TARGET)], 0)
    controller.open_reading(2, [(TARGET, 2)], 0)
    for t in (1, 2):
        assert not controller.must_wait(t, 0)
        decision = controller.decide(t, [0, 2, 3])
        oversight.decided(t, decision, 0.0, None)
        assert decision.bases == (Basis.OWN, Basis.CLOSED, Basis.CLOSED)
    assert controller.needs_asking(TARGET, 2)
    assert [event[2] for event in events] == [{"withdrawn_unused": 1, "withdrawn_used": 1}, {"other_kind": 1}]
    controller.receive([said(2, 2, Scored(0.5, ScoreKind.LABEL_PROBABILITY), TARGET)], 0)
    for t in (3, 4):
        controller.open_reading(t, [], 0)
        assert not controller.must_wait(t, 0)
    assert controller.decide(4, [2]).betas == pytest.approx((0.55,))
    assert controller.counts.other_kind == 1
    assert 5 not in controller.ledger.target


def test_8_seen() -> None:
    """Staleness in steps and seconds, split, a histogram and the share of degraded steps; kept over a
    restart."""
    controller, seen = Controller(adaptive(overdue="fail_closed")), Seen()
    clock = Clock()
    ages = []
    for t in range(10):
        controller.open_reading(t, [(POLICY, t)], clock.now)
        seen.opened(t, clock.now)
        if 1 <= t <= 4:  # a step late
            key = ItemKey(t - 1, POLICY, t - 1)
            controller.receive([Arrival(key, Scored(0.0))], clock.now)
            seen.answered(key, 0.25, 0.5, clock.now)
        decision, waited = until_decided(controller, t, clock, [t])
        ages.append(seen.stepped(controller, decision, clock.now, generate_s=0.125, wait_s=waited))
        clock.now += 1.0
        seen = Seen.from_state(json.loads(json.dumps(seen.to_state())))
    assert ages[0].staleness_s is None
    assert (ages[2].staleness_s, ages[2].queue_s, ages[2].judge_s, ages[2].fold_s) == (1.0, 0.25, 0.5, 0.0)
    assert ages[7].queue_s is None
    report = seen.report()
    assert report["histogram"] == {"1": 5, "2": 1, "3": 1, "4": 1, "5": 1, "6": 1}
    assert (report["steps"], report["max"], report["degraded_share"]) == (10, 6, 0.4)
    assert report["max_s"] >= 10.0
    assert (report["generate_s"], report["queue_s"], report["judge_s"]) == (0.125, 0.25, 0.5)
    events: list[Any] = []
    Oversight(controller.method.staleness, controller, lambda *event: events.append(event)).ended(seen)
    assert events[0][2]["staleness"] == report
    assert "at most 6 steps old" in events[0][1]
    assert "40.0% of the steps trained past the bound" in events[0][1]
