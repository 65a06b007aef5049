"""What the judge has said of each row, for the life of a job. Pure.

An *item* is one text sent to the judge: (step it was made at, source, row). A *reading* is the items
of one step. The ledger keeps, per row and source, the scores that readings have brought when folded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from shared.wire import FailureCode, ScoreKind


class SourceName(StrEnum):
    TARGET = "target"
    POLICY = "policy"


class ItemKey(NamedTuple):
    made_at: int
    """Optimizer step u; negative before the run's first step."""
    source: SourceName
    row: int
    """Index into the training file."""


class Scored(NamedTuple):
    score: float
    """Harm in [0,1]."""
    kind: ScoreKind | None = None
    """How the judge came to it, where it says so."""


class Failed(NamedTuple):
    code: FailureCode


Fate = Scored | Failed


class Arrival(NamedTuple):
    key: ItemKey
    fate: Fate


class Entry(NamedTuple):
    made_at: int
    score: float


@dataclass
class Ledger:
    target: dict[int, Entry] = field(default_factory=dict)
    """Row -> score of its training pair. The text never changes, so the first verdict is kept."""
    policy: dict[int, Entry] = field(default_factory=dict)
    """Row -> newest score of what the policy answered to it, and when that policy was."""

    def fold(self, key: ItemKey, score: float) -> None:
        entry = Entry(key.made_at, score)
        if key.source is SourceName.TARGET:
            self.target.setdefault(key.row, entry)
            return
        known = self.policy.get(key.row)
        if known is None or known.made_at < key.made_at:
            self.policy[key.row] = entry

    def withdraw(self, key: ItemKey) -> bool:
        """Forgets a score that is no longer trusted; False where it does not stand here."""
        entries = self.target if key.source is SourceName.TARGET else self.policy
        known = entries.get(key.row)
        if known is None or known.made_at != key.made_at:
            return False
        del entries[key.row]
        return True

    def own_scores(self, row: int, *, oldest_policy: int) -> list[float]:
        """What has been read of the row: its target, and a policy answer made at `oldest_policy` or later."""
        scores = []
        if row in self.target:
            scores.append(self.target[row].score)
        entry = self.policy.get(row)
        if entry is not None and entry.made_at >= oldest_policy:
            scores.append(entry.score)
        return scores

    def to_state(self) -> dict[str, Any]:
        return {
            "target": [[row, *entry] for row, entry in self.target.items()],
            "policy": [[row, *entry] for row, entry in self.policy.items()],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Ledger:
        return cls(
            target={row: Entry(made_at, score) for row, made_at, score in state["target"]},
            policy={row: Entry(made_at, score) for row, made_at, score in state["policy"]},
        )
