"""How many answers of the policy a step has judged: fewer where the judge cannot keep up for good. Pure.

Decided by the seconds that steps waited, on rank 0's clock, which every rank hears: so all of them ask for
equally many. Time is no part of what `fixed_lag` repeats, so there the number stays; with a bound of 0
every step waits for its own reading, which says nothing of the judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shared.safety import Clock, PolicySource, Staleness

HELD_UP = 0.05
"""Share of a step's time above which its waiting counts."""
WINDOW = 8
"""Steps that are looked at together. One outage is one long wait, and no sign of a slow judge."""
LONGEST_PATIENCE = 32


@dataclass(frozen=True)
class Change:
    before: int
    after: int
    """Samples a step and rank."""
    held_up: int
    """Of the last `WINDOW` steps."""


@dataclass
class Pace:
    """Halves when half of a window's steps were held up. Goes back, a quarter at a time, when none was in
    `patience` windows; that doubles with each halving, so that a judge at its limit is not pushed over it
    again and again."""

    most: int
    least: int
    settling_steps: int
    """After a change: what was asked before it is still at the judge."""
    samples: int
    """A step and rank."""
    settling: int = 0
    looked_at: int = 0
    held_up: int = 0
    clean_windows: int = 0
    patience: int = 1

    def stepped(self, *, waited_s: float, step_s: float) -> Change | None:
        """After each step that kept the bound. Returns a change that holds from the next step on."""
        if self.settling:
            self.settling -= 1
            return None
        self.looked_at += 1
        self.held_up += waited_s > HELD_UP * step_s
        if self.looked_at < WINDOW:
            return None
        held_up, self.looked_at, self.held_up = self.held_up, 0, 0
        self.clean_windows = 0 if held_up else self.clean_windows + 1
        after = self.samples
        if 2 * held_up >= WINDOW:
            after = max(self.least, self.samples // 2)
            self.patience = min(2 * self.patience, LONGEST_PATIENCE)
        elif self.clean_windows >= self.patience:
            after = min(self.most, self.samples + max(1, self.most // 4))
            self.clean_windows = 0
        if after == self.samples:
            return None
        before, self.samples = self.samples, after
        self.settling = self.settling_steps
        return Change(before, after, held_up)

    def to_state(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in _STATE}

    def restore(self, state: dict[str, Any]) -> None:
        for name in _STATE:
            setattr(self, name, state[name])


_STATE = ("samples", "settling", "looked_at", "held_up", "clean_windows", "patience")


def pace_of(policy: PolicySource, staleness: Staleness, ranks: int) -> Pace:
    """At what a job begins with. It stays there where the job's clock or bound leave no choice."""
    most = -(-policy.samples_per_step // ranks)
    least = -(-policy.min_samples_per_step // ranks)
    fixed = staleness.clock is Clock.FIXED_LAG or staleness.max_staleness == 0
    return Pace(
        most=most,
        least=most if fixed else least,
        settling_steps=staleness.max_staleness + 1,
        samples=most,
    )
