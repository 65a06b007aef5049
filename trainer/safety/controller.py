"""Bounded staleness: which beta each example gets, and how old the judge's word may be. Pure.

No clock, no network, no torch: whoever drives it says what time it is (rank 0's), what was sent and
what came back. Two controllers given the same calls agree bit for bit, which is how every rank comes
to the same betas and how a run is replayed from its log.

One step t, in order:

    open_reading(t, items, now)      what is sent to the judge at step t
    receive(arrivals, now)           verdicts, in any order; repeated while must_wait(t, now)
    decide(t, rows)                  betas for the step, or that it may not train

The terms (DESIGN section 4): a reading *resolves* when all of its items are terminal or it is
`deadline_s` old. The *cursor* passes resolved readings in order of their step and folds them. The
*frontier* is the newest folded step of which at least `min_scored` of the items were scored.
`staleness = t - frontier`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shared.safety import Adaptive, Clock, Overdue, TargetSource
from shared.wire import ScoreKind
from trainer.safety.combine import Foretold, combine
from trainer.safety.decision import Action, Basis, Counts, Decision
from trainer.safety.ledger import Arrival, Entry, Fate, ItemKey, Ledger, Scored, SourceName
from trainer.safety.probe.lessons import Taught
from trainer.safety.reading import TIMEOUT, UNTRUSTED, Item, Reading

FLAGGED_FROM = 0.5
"""Risk of a row that a filter would leave out."""


class Controller:
    """The rules of bounded staleness for one run. See the module's docstring for the order of calls."""

    def __init__(self, method: Adaptive) -> None:
        self.method = method
        self.k = method.staleness.max_staleness
        look_ahead = [s.look_ahead for s in method.sources if isinstance(s, TargetSource)]
        self.needs_target = bool(look_ahead)
        self.first_reading = -look_ahead[0] if look_ahead else 0
        """Readings before step 0 hold the target scores of the first `look_ahead` batches."""
        self.ema = 1.0  # nothing trains freely until something has looked
        self.cursor = self.first_reading - 1
        self.frontier = -1
        self.last_fold: int | None = None
        self.latched = False
        """An outage is known: no step waits again until the bound holds."""
        self.wait_began: float | None = None
        self.outages = 0
        """Times that the run was parked and went on."""
        self.anew_from = self.first_reading
        """Readings from this one on were asked again after the latest of these."""
        self.failing: dict[str, int] = {}
        """Failed verdicts by code since the frontier last moved: why it does not."""
        self.kind: ScoreKind | None = None
        """Of the first score. One job never mixes kinds: they are not on one scale."""
        self.ledger = Ledger()
        self._teaches = method.probe is not None
        self._taught: list[Taught] = []
        """What was folded or withdrawn since `take_taught`. No part of the state."""
        self.readings: dict[int, Reading] = {}
        """Opened and not yet folded."""
        self.counts = Counts()

    # --- what comes in ---------------------------------------------------------------------

    def open_reading(self, made_at: int, items: Iterable[tuple[SourceName, int]], now: float) -> None:
        """Declares everything that all ranks together send at step `made_at`.

        A row whose score cannot change and is known is not sent again (`needs_asking`); the average still
        sees every batch's target scores in every epoch.
        """
        if self.is_open(made_at):
            raise ValueError(f"reading {made_at} was opened already")
        reading = Reading(now, outstanding=set())
        for source, row in items:
            if self.ledger.needs_asking(source, row):
                reading.outstanding.add((source, row))
            elif source is SourceName.TARGET:
                reading.known[source, row] = self.ledger.target[row].score
        self.readings[made_at] = reading

    def preset_targets(self, scores: Mapping[int, float]) -> None:
        """Target scores that were had beforehand: these rows are never asked. Before the first step."""
        before = self.first_reading - 1  # of no reading
        self.ledger.target.update((row, Entry(before, score)) for row, score in scores.items())
        for row, score in scores.items():
            self._teach(ItemKey(before, SourceName.TARGET, row), score)

    def take_taught(self) -> list[Taught]:
        """What the judge has said, and taken back, since the last call: what a probe learns from."""
        taught, self._taught = self._taught, []
        return taught

    def _teach(self, key: ItemKey, score: float | None) -> None:
        # What the reference answers says little of the row: it refuses what is harmful.
        if self._teaches and key.source is not SourceName.REFERENCE:
            self._taught.append(Taught(key, score))

    def is_open(self, made_at: int) -> bool:
        """Whether the reading was opened already, in the run that this one resumes."""
        return made_at in self.readings or made_at <= self.cursor

    def needs_asking(self, source: SourceName, row: int) -> bool:
        return self.ledger.needs_asking(source, row)

    def is_outstanding(self, key: ItemKey) -> bool:
        reading = self.readings.get(key.made_at)
        return reading is not None and (key.source, key.row) in reading.outstanding

    def receive(self, arrivals: Sequence[Arrival], now: float) -> bool:
        """Takes verdicts in whatever order; the first for an item wins, except that `untrusted`
        withdraws a score. Then lets readings that are `deadline_s` old resolve: what they still lack
        is `failed: timeout`.

        Returns whether anything came or timed out.
        """
        before = self.counts.timeouts
        for key, fate in arrivals:
            reading = self.readings.get(key.made_at)
            item = (key.source, key.row)
            if reading is None:
                self._receive_late(key, fate)
            elif item in reading.outstanding:
                reading.outstanding.remove(item)
                reading.fates[item] = self._of_one_kind(fate)
            elif fate == UNTRUSTED and isinstance(reading.fates.get(item), Scored):
                reading.fates[item] = fate
                self.counts.withdrawn += 1
            elif reading.fates.get(item) == TIMEOUT:
                self.counts.late += 1
            elif item in reading.fates:
                self.counts.duplicate += 1
            else:
                self.counts.unknown += 1
        for reading in self.readings.values():
            if reading.outstanding and now - reading.opened_at >= self.method.staleness.deadline_s:
                self.counts.timeouts += reading.time_out()
        return bool(arrivals) or self.counts.timeouts > before

    def _of_one_kind(self, fate: Fate) -> Fate:
        if not isinstance(fate, Scored) or fate.kind is None:
            return fate
        self.kind = self.kind or fate.kind
        if fate.kind is self.kind:
            return fate
        self.counts.other_kind += 1
        return UNTRUSTED

    def _receive_late(self, key: ItemKey, fate: Fate) -> None:
        """A verdict for a reading that is folded, or that never was."""
        if not self.first_reading <= key.made_at <= self.cursor:
            self.counts.unknown += 1
            return
        if fate == UNTRUSTED:
            self._teach(key, None)
        if fate == UNTRUSTED and self.ledger.withdraw(key):
            self.counts.withdrawn_late += 1
        else:
            self.counts.late += 1

    # --- the clock -------------------------------------------------------------------------

    def must_wait(self, t: int, now: float) -> bool:
        """Folds what may be folded by step t, then says whether the step must wait for more.

        False when the bound holds, when nothing that is out could mend it, or when this outage has
        had its one wait of `deadline_s`; the overdue policy is then latched.
        """
        self._advance(t)
        if self._holds(t):
            self.latched = False
            self.wait_began = None
            return False
        if self.latched:
            return False
        if self.wait_began is None:
            self.wait_began = now
        could_mend = any(u <= self._fold_limit(t) and r.outstanding for u, r in self.readings.items())
        if could_mend and now - self.wait_began < self.method.staleness.deadline_s:
            return True
        self.latched = True
        self.wait_began = None
        return False

    def _holds(self, t: int) -> bool:
        """The bound at step t. The cursor counts too: before step K nothing is stale by the
        frontier's word, but the rows' own target readings are due."""
        return self.cursor >= t - self.k and t - self.frontier <= self.k

    def _fold_limit(self, t: int) -> int:
        """The newest reading that may be folded at step t."""
        return t - self.k if self.method.staleness.clock is Clock.FIXED_LAG else t

    def _advance(self, t: int) -> None:
        while self.cursor < self._fold_limit(t):
            reading = self.readings.get(self.cursor + 1)
            if reading is None or reading.outstanding:
                return
            self.cursor += 1
            self._fold(self.cursor, self.readings.pop(self.cursor))

    def _fold(self, made_at: int, reading: Reading) -> None:
        # In order of item, not of arrival: a float sum must not depend on the judge's timing.
        scored = reading.scored()
        for (source, row), score in sorted(scored.items()):
            self.ledger.fold(ItemKey(made_at, source, row), score)
            self._teach(ItemKey(made_at, source, row), score)
        self.counts.scored += len(scored)
        for code in reading.failed():
            self.counts.failed += 1
            self.failing[code.value] = self.failing.get(code.value, 0) + 1
        # Of what was asked; but what the reference says is no news of the policy. A reading that asked
        # nothing is as fresh as can be.
        if _news(scored) >= self.method.staleness.min_scored * _news(reading.fates):
            self.frontier = max(self.frontier, made_at)
            self.failing.clear()
        scores = self._felt(scored | reading.known)
        if not scores:
            return
        mean = sum(scores) / len(scores)
        staleness = self.method.staleness
        gain = staleness.gain_up if mean > self.ema else staleness.gain_down
        # At least 1: after an outage steps are asked, and folded, again.
        steps = 1 if self.last_fold is None else max(1, made_at - self.last_fold)
        # Time-decay: n steps without a reading weigh as n readings of this mean.
        self.ema += (1 - (1 - gain) ** steps) * (mean - self.ema)
        self.last_fold = made_at if self.last_fold is None else max(self.last_fold, made_at)

    def _felt(self, scores: Mapping[Item, float]) -> list[float]:
        """What the average feels: of the policy its drift, of the reference nothing."""
        return [
            self.ledger.drift(row, score) if source is SourceName.POLICY else score
            for (source, row), score in sorted(scores.items())
            if source is not SourceName.REFERENCE
        ]

    # --- what goes out ---------------------------------------------------------------------

    def decide(self, t: int, rows: Sequence[int], foretold: Sequence[Foretold] | None = None) -> Decision:
        """The betas of step t for `rows`, the step's examples over all ranks in order.

        Args:
            foretold: what the probe makes of each of them; None while it has nothing to say.
        """
        overdue = not self._holds(t)
        policy = self.method.staleness.overdue
        action = Action.TRAIN
        if overdue and policy is Overdue.PARK:
            action = Action.PARK
        elif overdue and policy is Overdue.ABORT:
            action = Action.ABORT
        risks: list[float] = []
        bases: list[Basis] = []
        unread = 0
        told: Sequence[Foretold | None] = [None] * len(rows) if foretold is None else foretold
        for row, probed in zip(rows, told, strict=True):
            risk, basis, read = self._risk(t, row, overdue, probed)
            risks.append(risk)
            bases.append(basis)
            unread += not read
        if action is Action.TRAIN:
            self.counts.trained += len(rows)
            self.counts.unread += unread
            self.counts.degraded_steps += overdue
        low, high = self.method.beta_min, self.method.beta_max
        return Decision(
            action=action,
            betas=tuple(low + (high - low) * risk for risk in risks),
            bases=tuple(bases),
            kept=tuple(self.method.flagged == "pull" or risk < FLAGGED_FROM for risk in risks),
            risk=self.ema,
            staleness=t - self.frontier,
            overdue=overdue,
            unread=unread,
        )

    def _risk(self, t: int, row: int, overdue: bool, foretold: Foretold | None) -> tuple[float, Basis, bool]:
        """(s_i, what it rests on, whether a valid verdict stands behind it)."""
        hold = self.method.staleness.overdue is Overdue.HOLD
        if self.method.granularity == "example":
            scores = self.ledger.own_scores(row, oldest_policy=t - self.k)
            own = combine(self.method.combine, scores, foretold)
            target_missing = self.needs_target and row not in self.ledger.target
            if own is not None and not target_missing:
                return own, Basis.OWN, True
            if target_missing or overdue:
                # Rows that cannot be judged must not train freely, whatever the probe says.
                return (max(own or 0.0, self.ema), Basis.HELD, False) if hold else (1.0, Basis.CLOSED, False)
            if foretold is not None and foretold.trust > 0:
                score, trust = foretold
                return trust * score + (1 - trust) * self.ema, Basis.PROBE, True
            return self.ema, Basis.AVERAGE, True
        if overdue:
            return (self.ema, Basis.HELD, False) if hold else (1.0, Basis.CLOSED, False)
        return self.ema, Basis.AVERAGE, True

    @property
    def unread(self) -> int:
        """Example-steps trained with no valid verdict. All of them, if nothing was ever scored: a run
        shorter than the bound would otherwise end unread and unnoticed."""
        return self.counts.trained if self.last_fold is None else self.counts.unread

    @property
    def unread_fraction(self) -> float:
        return self.unread / self.counts.trained if self.counts.trained else 0.0

    def unread_past_limit(self, planned: int) -> bool:
        """Whether more of the `planned` example-steps have trained unread than the job allows."""
        return self.counts.unread > self.method.staleness.max_unread_fraction * planned

    # --- outage and checkpoint -------------------------------------------------------------

    def outage_over(self, t: int) -> int:
        """A parked run goes on at step t: what the outage swallowed is asked anew, so readings
        from the returned step on are to be opened again. What was folded stays."""
        self.readings.clear()
        self.cursor = t - 1 - max(self.k, -self.first_reading)
        self.latched = False
        self.outages += 1
        self.anew_from = self.cursor + 1
        return self.anew_from

    def to_state(self) -> dict[str, Any]:
        """Everything, as JSON values. Floats survive JSON exactly."""
        return {
            "ema": self.ema,
            "cursor": self.cursor,
            "frontier": self.frontier,
            "last_fold": self.last_fold,
            "latched": self.latched,
            "outages": self.outages,
            "anew_from": self.anew_from,
            "failing": self.failing.copy(),
            "kind": self.kind,
            "ledger": self.ledger.to_state(),
            "counts": vars(self.counts).copy(),
            "readings": [[u, reading.to_state()] for u, reading in sorted(self.readings.items())],
        }

    def restore(self, state: dict[str, Any], now: float) -> None:
        """Continues from `to_state`. What was outstanding is asked again, so its age starts anew."""
        self.ema = state["ema"]
        self.cursor = state["cursor"]
        self.frontier = state["frontier"]
        self.last_fold = state["last_fold"]
        self.latched = state["latched"]
        self.outages = state["outages"]
        self.anew_from = state["anew_from"]
        self.failing = dict(state["failing"])
        self.kind = None if state["kind"] is None else ScoreKind(state["kind"])
        self.wait_began = None
        # The checkpoint's teacher has heard what was had beforehand.
        self._taught.clear()
        self.ledger = Ledger.from_state(state["ledger"])
        self.counts = Counts(**state["counts"])
        self.readings = {u: Reading.from_state(reading, now) for u, reading in state["readings"]}


def _news(items: Iterable[Item]) -> int:
    return sum(source is not SourceName.REFERENCE for source, _ in items)
