"""Every order of arrivals, failures and losses, for runs of up to T = 6 steps and K <= 3.

The environment may, at each step, let any outstanding reading be scored or fail, in any order; while
a step waits, it may do so again or let the deadline pass. From every state all choices are followed
(states that agree in all that matters later are followed once). At every step that trains, the rules
of DESIGN section 4 are checked against a plain reading of them: `Truth` knows only what happened.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest

from shared.safety import Adaptive, Clock, Overdue, PolicySource, Staleness
from shared.wire import FailureCode
from trainer.safety.controller import Controller
from trainer.safety.decision import Action, Basis
from trainer.safety.ledger import Arrival, Failed, ItemKey, Scored, SourceName

STEPS = 6
DEADLINE_S = 100.0
SCORES = (0.9, 0.0, 0.5, 1.0, 0.2, 0.7)


@dataclass(frozen=True)
class Truth:
    """What happened, and what the rules make of it, step by step and without cleverness."""

    k: int
    fixed_lag: bool
    fates: tuple[str, ...] = ()
    """Of each reading made so far: '.' outstanding, 's' scored, 'f' failed."""
    cursor: int = -1
    outage: bool = False
    """The one wait has been had."""

    def made(self) -> Truth:
        return replace(self, fates=(*self.fates, "."))

    def with_fate(self, u: int, fate: str) -> Truth:
        return replace(self, fates=(*self.fates[:u], fate, *self.fates[u + 1 :]))

    def folded(self, t: int) -> Truth:
        last = t - self.k if self.fixed_lag else t
        cursor = self.cursor
        while cursor < last and self.fates[cursor + 1] != ".":
            cursor += 1
        return replace(self, cursor=cursor)

    @property
    def frontier(self) -> int:
        return max((u for u in range(self.cursor + 1) if self.fates[u] == "s"), default=-1)

    def holds(self, t: int) -> bool:
        return t - self.frontier <= self.k and self.cursor >= t - self.k

    @property
    def ema(self) -> float:
        ema, last = 1.0, None
        for u in range(self.cursor + 1):
            if self.fates[u] != "s":
                continue
            gain = 0.7 if SCORES[u] > ema else 0.05
            gap = 1 if last is None else u - last
            ema += (1 - (1 - gain) ** gap) * (SCORES[u] - ema)
            last = u
        return ema


def fork(controller: Controller) -> Controller:
    twin = copy.copy(controller)
    twin.ledger = copy.copy(controller.ledger)
    twin.ledger.policy = dict(controller.ledger.policy)
    twin.counts = copy.copy(controller.counts)
    twin.readings = {}
    for u, reading in controller.readings.items():
        other = copy.copy(reading)
        other.outstanding = set(reading.outstanding)
        other.fates = dict(reading.fates)
        twin.readings[u] = other
    return twin


class Explorer:
    def __init__(self, k: int, clock: Clock) -> None:
        self.method = Adaptive(
            sources=(PolicySource(),),
            staleness=Staleness(
                clock=clock, max_staleness=k, deadline_s=DEADLINE_S, overdue=Overdue.FAIL_CLOSED
            ),
        )
        self.seen: set[tuple[object, ...]] = set()
        self.decisions = 0
        self.overdue = 0

    def explore(self) -> None:
        truth = Truth(self.method.staleness.max_staleness, self.method.staleness.clock is Clock.FIXED_LAG)
        self.begin_step(0, Controller(self.method), truth, 1000.0)

    def begin_step(self, t: int, controller: Controller, truth: Truth, now: float) -> None:
        if t == STEPS:
            return
        controller.open_reading(t, [(SourceName.POLICY, t)], now)
        self.deliver(t, controller, truth.made(), now, waiting=False)

    def deliver(self, t: int, controller: Controller, truth: Truth, now: float, *, waiting: bool) -> None:
        """The environment's turn: one more verdict, or on with the step."""
        ages = tuple(now - reading.opened_at for reading in controller.readings.values())
        waited = None if controller.wait_began is None else now - controller.wait_began
        state = (t, truth, ages, waited, waiting, controller.latched)
        if state in self.seen:
            return
        self.seen.add(state)
        for u, fate in enumerate(truth.fates):
            if fate != ".":
                continue
            key = ItemKey(u, SourceName.POLICY, u)
            for name, verdict in (("s", Scored(SCORES[u])), ("f", Failed(FailureCode.SERVER_ERROR))):
                self.hear(
                    t, controller, truth.with_fate(u, name), [Arrival(key, verdict)], now, waiting=waiting
                )
        self.proceed(t, fork(controller), truth, now)
        if not waiting:
            return
        # Or nothing comes: until the oldest that is out times out, or until the wait has had its time.
        assert controller.wait_began is not None
        over = controller.wait_began + DEADLINE_S
        due = {r.opened_at + DEADLINE_S for r in controller.readings.values() if r.outstanding} | {over}
        for later in due:
            if not now < later <= over:
                continue
            self.hear(t, controller, truth, [], later, waiting=True)

    def hear(
        self,
        t: int,
        controller: Controller,
        truth: Truth,
        arrivals: list[Arrival],
        now: float,
        *,
        waiting: bool,
    ) -> None:
        twin = fork(controller)
        twin.receive(arrivals, now)
        for u, reading in controller.readings.items():
            if truth.fates[u] == "." and now - reading.opened_at >= DEADLINE_S:
                truth = truth.with_fate(u, "f")
        self.deliver(t, twin, truth, now, waiting=waiting)

    def proceed(self, t: int, controller: Controller, truth: Truth, now: float) -> None:
        was_waiting = controller.wait_began is not None
        waited = now - controller.wait_began if controller.wait_began is not None else 0.0
        waits = controller.must_wait(t, now)
        truth = truth.folded(t)
        could_mend = "." in truth.fates[: (t - truth.k if truth.fixed_lag else t) + 1]
        if truth.holds(t):
            assert not waits, "a step waits although the bound holds"
            truth = replace(truth, outage=False)
        elif truth.outage:
            assert not waits, "an outage is waited for twice"
        elif waits:
            assert waited < DEADLINE_S, "a wait goes on past the deadline"
            assert could_mend, "a step waits for nothing"
            if not was_waiting:
                self.deliver(t, controller, truth, now, waiting=True)
            # else: still waiting; what else may come is followed in `deliver`
            return
        else:
            assert waited >= DEADLINE_S or not could_mend, "an outage is not waited for"
            truth = replace(truth, outage=True)
        self.check(t, controller, truth)
        self.begin_step(t + 1, controller, truth, now + 1.0)

    def check(self, t: int, controller: Controller, truth: Truth) -> None:
        decision = controller.decide(t, [t, 1000])
        self.decisions += 1
        assert controller.cursor == truth.cursor
        assert decision.staleness == t - truth.frontier
        assert decision.risk == pytest.approx(truth.ema, abs=1e-12)
        assert decision.action is Action.TRAIN
        # Guarantee 1: within the bound at use time, or the overdue policy acts and says so.
        assert decision.overdue == (not truth.holds(t))
        assert decision.overdue or decision.staleness <= truth.k
        self.overdue += decision.overdue
        if truth.fixed_lag and not decision.overdue:
            assert truth.cursor == t - truth.k if t >= truth.k else truth.cursor == -1
        read = t <= truth.cursor and truth.fates[t] == "s"
        expected = SCORES[t] if read else 1.0 if decision.overdue else truth.ema
        assert decision.betas[0] == pytest.approx(0.1 + 0.9 * expected, abs=1e-12)
        # Guarantee 3: what nothing has read is never a number that came from nowhere.
        assert decision.bases[1] is (Basis.CLOSED if decision.overdue else Basis.AVERAGE)
        assert decision.unread == (decision.overdue * (2 - read))


@pytest.mark.parametrize("clock", list(Clock))
@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_every_order_of_arrivals_failures_and_losses(k: int, clock: Clock) -> None:
    explorer = Explorer(k, clock)
    explorer.explore()
    # Were the environment's choices not followed, these would be a handful.
    assert explorer.decisions > 500
    assert explorer.overdue > 50
