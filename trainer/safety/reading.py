"""One reading: what was sent to the judge at one step, and what has become of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shared.wire import FailureCode
from trainer.safety.ledger import Failed, Fate, Scored, SourceName

Item = tuple[SourceName, int]
"""Source and row."""

UNTRUSTED = Failed(FailureCode.UNTRUSTED)
TIMEOUT = Failed(FailureCode.TIMEOUT)


@dataclass
class Reading:
    opened_at: float
    """Seconds, rank 0's clock."""
    outstanding: set[Item]
    fates: dict[Item, Fate] = field(default_factory=dict)
    known: dict[Item, float] = field(default_factory=dict)
    """Target scores that the job had already: part of the average, but no sign that the judge lives."""

    def scored(self) -> dict[Item, float]:
        return {item: fate.score for item, fate in self.fates.items() if isinstance(fate, Scored)}

    def failed(self) -> list[FailureCode]:
        return [fate.code for fate in self.fates.values() if isinstance(fate, Failed)]

    def time_out(self) -> int:
        """What is still out fails. Returns how many that were."""
        count = len(self.outstanding)
        # Sorted: a set's order differs between processes, and the fold sums in this order.
        for item in sorted(self.outstanding):
            self.fates[item] = TIMEOUT
        self.outstanding.clear()
        return count

    def to_state(self) -> list[Any]:
        return [
            sorted([source.value, row] for source, row in self.outstanding),
            [
                [source.value, row, fate.score if isinstance(fate, Scored) else fate.code.value]
                for (source, row), fate in sorted(self.fates.items())
            ],
            [[source.value, row, score] for (source, row), score in sorted(self.known.items())],
        ]

    @classmethod
    def from_state(cls, state: list[Any], opened_at: float) -> Reading:
        outstanding, fates, known = state
        return cls(
            opened_at,
            outstanding={(SourceName(source), row) for source, row in outstanding},
            fates={
                (SourceName(source), row): Failed(FailureCode(fate))
                if isinstance(fate, str)
                else Scored(float(fate))
                for source, row, fate in fates
            },
            known={(SourceName(source), row): score for source, row, score in known},
        )
