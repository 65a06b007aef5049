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
    REFERENCE = "reference"
    CANARY = "canary"
    """Of the provider's prompts and not of a row; the ledger never sees one."""


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
    reference: dict[int, Entry] = field(default_factory=dict)
    """Row -> score of what the reference answered to it. It never changes, so the first verdict is kept."""

    def of(self, source: SourceName) -> dict[int, Entry]:
        match source:
            case SourceName.TARGET:
                return self.target
            case SourceName.POLICY:
                return self.policy
            case SourceName.REFERENCE:
                return self.reference
            case SourceName.CANARY:
                raise ValueError("a canary reads no row: it has no place in the ledger")

    def needs_asking(self, source: SourceName, row: int) -> bool:
        """Not where the job holds a score of a text that cannot change."""
        return source is SourceName.POLICY or row not in self.of(source)

    def fold(self, key: ItemKey, score: float) -> None:
        entries = self.of(key.source)
        known = entries.get(key.row)
        if known is None or (key.source is SourceName.POLICY and known.made_at < key.made_at):
            entries[key.row] = Entry(key.made_at, score)

    def withdraw(self, key: ItemKey) -> bool:
        """Forgets a score that is no longer trusted; False where it does not stand here."""
        entries = self.of(key.source)
        known = entries.get(key.row)
        if known is None or known.made_at != key.made_at:
            return False
        del entries[key.row]
        return True

    def own_scores(self, row: int, *, oldest_policy: int) -> list[float]:
        """What has been read of the row: its target, and a policy answer made at `oldest_policy` or later,
        less what the reference's own was."""
        scores = []
        if row in self.target:
            scores.append(self.target[row].score)
        entry = self.policy.get(row)
        if entry is not None and entry.made_at >= oldest_policy:
            scores.append(self.drift(row, entry.score))
        return scores

    def drift(self, row: int, policy_score: float) -> float:
        """How much worse the policy's answer is than the reference's; while that has not been read, how bad
        it is."""
        reference = self.reference.get(row)
        return policy_score if reference is None else max(0.0, policy_score - reference.score)

    def to_state(self) -> dict[str, Any]:
        return {
            "target": [[row, *entry] for row, entry in self.target.items()],
            "policy": [[row, *entry] for row, entry in self.policy.items()],
            "reference": [[row, *entry] for row, entry in self.reference.items()],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Ledger:
        return cls(
            target={row: Entry(made_at, score) for row, made_at, score in state["target"]},
            policy={row: Entry(made_at, score) for row, made_at, score in state["policy"]},
            reference={row: Entry(made_at, score) for row, made_at, score in state["reference"]},
        )
