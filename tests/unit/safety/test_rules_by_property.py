"""The controller against the rules read aloud, under whatever a judge may do.

`Plain` keeps nothing: it answers every question from the whole history of calls, the slow and obvious
way. Hypothesis draws the history: any order of verdicts, duplicates, failures, verdicts that never come,
come late, are withdrawn, or belong to nothing; waits, epochs that repeat rows, and restarts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from shared.safety import Adaptive
from shared.wire import FailureCode
from trainer.safety.decision import Action
from trainer.safety.journal import Journal, replay
from trainer.safety.ledger import Arrival, Failed, Fate, ItemKey, Scored, SourceName

TARGET, POLICY, REFERENCE = SourceName.TARGET, SourceName.POLICY, SourceName.REFERENCE
DEADLINE_S = 10.0
STEPS, ROWS, BATCH, AHEAD = 8, 6, 2, 3


# --- what was called ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    u: int
    items: tuple[tuple[SourceName, int], ...]
    now: float


@dataclass(frozen=True)
class Received:
    arrivals: tuple[Arrival, ...]
    now: float


@dataclass(frozen=True)
class Asked:
    """Whether step t must wait."""

    t: int


@dataclass(frozen=True)
class Restored:
    now: float


class Plain:
    def __init__(self, method: Adaptive) -> None:
        self.method = method
        self.k = method.staleness.max_staleness
        self.lag = method.staleness.clock == "fixed_lag"
        self.target = any(source.type == "target" for source in method.sources)
        self.history: list[Opened | Received | Asked | Restored] = []
        # These two follow from the history, and are kept for speed alone.
        self.asked: dict[int, list[tuple[SourceName, int]]] = {}
        """What reading u really asked: all but target scores that were known by then."""
        self.folded: list[tuple[int, int]] = []
        """(index in the history, u), in order."""

    def add(self, event: Opened | Received | Asked | Restored) -> None:
        if isinstance(event, Opened):
            at = len(self.history)
            self.asked[event.u] = [
                (source, row)
                for source, row in event.items
                if source is POLICY or self.score(source, row, at) is None
            ]
        self.history.append(event)
        if isinstance(event, Asked):
            self.fold(event.t)

    def fold(self, t: int) -> None:
        at = len(self.history)
        while True:
            u = self.cursor + 1
            if u not in self.asked or u > (t - self.k if self.lag else t):
                return
            if any(self.fate(u, item, at) is None for item in self.asked[u]):
                return
            self.folded.append((at, u))

    @property
    def cursor(self) -> int:
        return self.folded[-1][1] if self.folded else (-AHEAD if self.target else 0) - 1

    def fate(self, u: int, item: tuple[SourceName, int], upto: int) -> Fate | None:
        """The first verdict, unless it was withdrawn; else the time-out; else nothing yet."""
        fate: Fate | None = None
        since = None
        for event in self.history[:upto]:
            if isinstance(event, Opened) and event.u == u:
                since = event.now
            if since is None:
                continue
            if isinstance(event, Restored):
                since = event.now
            if not isinstance(event, Received):
                continue
            for arrival in event.arrivals:
                if arrival.key != ItemKey(u, *item):
                    continue
                if fate is None or (
                    isinstance(fate, Scored) and arrival.fate == Failed(FailureCode.UNTRUSTED)
                ):
                    fate = arrival.fate
            if fate is None and event.now - since >= DEADLINE_S:
                fate = Failed(FailureCode.TIMEOUT)
        return fate

    def entry(
        self, source: SourceName, row: int, upto: int, folds: int | None = None
    ) -> tuple[int, float] | None:
        """(u, score) that the job holds of a row, after the first `folds` folds."""
        held: tuple[int, float] | None = None
        for at in range(upto + 1):
            for fold_at, u in self.folded[:folds]:
                if fold_at != at or (source, row) not in self.asked[u]:
                    continue
                fate = self.fate(u, (source, row), at)
                if isinstance(fate, Scored) and (held is None or source is POLICY):
                    held = (u, fate.score)
            event = self.history[at] if at < upto else None
            if isinstance(event, Received) and held is not None:
                gone = Arrival(ItemKey(held[0], source, row), Failed(FailureCode.UNTRUSTED))
                if gone in event.arrivals:
                    held = None
        return held

    def score(self, source: SourceName, row: int, upto: int, folds: int | None = None) -> float | None:
        entry = self.entry(source, row, upto, folds)
        return None if entry is None else entry[1]

    def drift(self, row: int, policy: float, upto: int, folds: int | None = None) -> float:
        reference = self.score(REFERENCE, row, upto, folds)
        return policy if reference is None else max(0.0, policy - reference)

    def ema_and_frontier(self) -> tuple[float, int]:
        ema, last, frontier = 1.0, None, -1
        for folds, (at, u) in enumerate(self.folded, start=1):
            opened = next(e for e in self.history if isinstance(e, Opened) and e.u == u)
            asked = self.asked[u]
            fates = {item: self.fate(u, item, at) for item in asked}
            scores = {item: fate.score for item, fate in fates.items() if isinstance(fate, Scored)}
            if len([s for s, _ in scores if s is not REFERENCE]) >= 0.5 * len(
                [s for s, _ in asked if s is not REFERENCE]
            ):
                frontier = max(frontier, u)
            index = self.history.index(opened)
            for source, row in opened.items:
                if source is TARGET and (source, row) not in asked:
                    known = self.score(TARGET, row, index)
                    assert known is not None
                    scores[source, row] = known
            felt = [
                self.drift(row, score, at, folds) if source is POLICY else score
                for (source, row), score in sorted(scores.items())
                if source is not REFERENCE
            ]
            if not felt:
                continue
            mean = sum(felt) / len(felt)
            gain = 0.7 if mean > ema else 0.05
            ema += (1 - (1 - gain) ** (1 if last is None else u - last)) * (mean - ema)
            last = u
        return ema, frontier

    def betas(self, t: int, rows: list[int]) -> tuple[list[float], int, bool]:
        ema, frontier = self.ema_and_frontier()
        overdue = t - frontier > self.k or self.cursor < t - self.k
        now = len(self.history)
        betas = []
        for row in rows:
            if self.method.granularity == "batch":
                risk = 1.0 if overdue else ema
            else:
                target = self.score(TARGET, row, now)
                said = self.entry(POLICY, row, now)
                own = [] if target is None else [target]
                own += [self.drift(row, said[1], now)] if said is not None and said[0] >= t - self.k else []
                if self.target and target is None:
                    risk = 1.0
                elif own:
                    risk = max(own) if self.method.combine == "max" else sum(own) / len(own)
                else:
                    risk = 1.0 if overdue else ema
            betas.append(0.1 + 0.9 * risk)
        return betas, t - frontier, overdue


# --- what is drawn -----------------------------------------------------------------------------


def rows_of(step: int) -> list[int]:
    return [(BATCH * step + i) % ROWS for i in range(BATCH)]


@st.composite
def methods(draw: st.DrawFn) -> Adaptive:
    sources: list[Any] = draw(st.sampled_from([["t"], ["p"], ["t", "p"], ["p", "r"], ["t", "p", "r"]]))
    named: dict[str, Any] = {
        "t": {"type": "target", "look_ahead": AHEAD},
        "p": {"type": "policy"},
        "r": {"type": "reference"},
    }
    return Adaptive.model_validate(
        {
            "sources": [named[name] for name in sources],
            "granularity": draw(st.sampled_from(["example", "batch"])),
            "combine": draw(st.sampled_from(["max", "mean"])),
            "staleness": {
                "max_staleness": draw(st.integers(0, AHEAD)),
                "deadline_s": DEADLINE_S,
                "overdue": "fail_closed",
                "clock": draw(st.sampled_from(["opportunistic", "fixed_lag"])),
            },
        }
    )


SCORES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
FATES = st.one_of(
    SCORES.map(Scored), st.sampled_from([Failed(FailureCode.PARSE_ERROR), Failed(FailureCode.UNTRUSTED)])
)


def arrivals(data: st.DataObject, out: list[ItemKey], answered: list[ItemKey]) -> tuple[Arrival, ...]:
    """Some of what is out, some again, some withdrawn, some of nothing that was ever asked."""
    keys = data.draw(st.lists(st.sampled_from(out), unique=True)) if out else []
    if answered:
        keys = keys + data.draw(st.lists(st.sampled_from(answered), max_size=2))
    if data.draw(st.integers(0, 9)) == 0:
        keys = [*keys, ItemKey(STEPS + 5, POLICY, 0)]
    return tuple(Arrival(key, data.draw(FATES)) for key in data.draw(st.permutations(keys)))


# No shrinking: of a history as long as these it takes minutes.
@settings(max_examples=150, deadline=None, phases=(Phase.generate, Phase.reuse))
@given(method=methods(), data=st.data())
def test_whatever_the_judge_does_the_betas_are_those_of_the_rules(
    method: Adaptive, data: st.DataObject
) -> None:
    lines: list[bytes] = []
    plain = Plain(method)
    journal = Journal(method, {}, lambda call: lines.append(json.dumps(call).encode() + b"\n"))
    kinds = {source.type for source in method.sources}
    now = 0.0
    answered: list[ItemKey] = []

    def open_reading(u: int) -> None:
        items = [(TARGET, row) for row in rows_of(u + AHEAD)] if "target" in kinds else []
        if "policy" in kinds and u >= 0:
            items.append((POLICY, data.draw(st.integers(0, ROWS - 1))))
            if "reference" in kinds:
                items.append((REFERENCE, items[-1][1]))
        plain.add(Opened(u, tuple(items), now))
        journal.open_reading(u, items, now)

    def receive() -> None:
        out = [
            ItemKey(u, *item)
            for u, reading in sorted(journal.controller.readings.items())
            for item in sorted(reading.outstanding)
        ]
        came = arrivals(data, out, answered)
        answered.extend(key for key, _ in came if key in out)
        plain.add(Received(came, now))
        journal.receive(came, now)

    for u in range(-AHEAD if "target" in kinds else 0, 0):
        open_reading(u)
    for t in range(STEPS):
        if data.draw(st.integers(0, 5)) == 0:
            state = json.loads(json.dumps(journal.checkpoint(t)))
            plain.add(Restored(now))
            journal = Journal(method, {}, lambda call: lines.append(json.dumps(call).encode() + b"\n"))
            journal.restore(state, t=t, now=now)
        open_reading(t)
        receive()
        waited = 0.0
        while journal.must_wait(t, now):
            plain.add(Asked(t))
            assert waited < DEADLINE_S, "a step waits past the deadline"
            pause = data.draw(st.sampled_from([0.5, 4.0, DEADLINE_S]))
            now, waited = now + pause, waited + pause
            receive()
        plain.add(Asked(t))
        rows = [*rows_of(t), ROWS + 1]  # and one that nothing was ever asked about
        decision = journal.decide(t, rows)
        betas, staleness, overdue = plain.betas(t, rows)
        assert decision.action is Action.TRAIN
        assert decision.staleness == staleness
        assert decision.overdue == overdue
        assert overdue or staleness <= plain.k
        assert list(decision.betas) == pytest.approx(betas, abs=1e-12)
        now += data.draw(st.sampled_from([0.25, 3.0]))
    assert replay(lines).difference is None
