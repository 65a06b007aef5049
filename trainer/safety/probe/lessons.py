"""What the judge has taught of each row, of which a bounded number is kept. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trainer.safety.ledger import ItemKey, SourceName

HARMFUL_FROM = 0.5
"""A verdict from here on is an example of harm."""


class Taught(NamedTuple):
    """A verdict that was folded; with no score, one that was withdrawn."""

    key: ItemKey
    score: float | None


@dataclass
class Lesson:
    """One row's verdicts. A row teaches the greatest of them: an answer that the policy refuses does not
    make a request harmless."""

    scores: dict[tuple[int, SourceName], float] = field(default_factory=dict)

    @property
    def harmful(self) -> bool:
        return max(self.scores.values()) >= HARMFUL_FROM


class Lessons:
    """Row -> its lesson, the row that was taught longest ago first."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._by_row: dict[int, Lesson] = {}

    def __len__(self) -> int:
        return len(self._by_row)

    def __contains__(self, row: int) -> bool:
        return row in self._by_row

    def rows(self) -> list[int]:
        return list(self._by_row)

    def harmful(self, row: int) -> bool:
        return self._by_row[row].harmful

    def teach(self, key: ItemKey, score: float) -> None:
        """Past the bound the oldest lesson of the class that has more is forgotten: a rare class must
        not be crowded out."""
        self._by_row.setdefault(key.row, Lesson()).scores[key.made_at, key.source] = score
        if len(self._by_row) <= self._bound:
            return
        harmful = sum(lesson.harmful for lesson in self._by_row.values())
        larger = 2 * harmful > len(self._by_row)
        del self._by_row[next(row for row, lesson in self._by_row.items() if lesson.harmful is larger)]

    def withdraw(self, key: ItemKey) -> bool:
        """Takes back a verdict; False where it is not here. A row that has no other teaches no more."""
        lesson = self._by_row.get(key.row)
        if lesson is None or lesson.scores.pop((key.made_at, key.source), None) is None:
            return False
        if not lesson.scores:
            del self._by_row[key.row]
        return True

    def to_state(self) -> list[Any]:
        return [
            [row, [[made_at, source.value, score] for (made_at, source), score in lesson.scores.items()]]
            for row, lesson in self._by_row.items()
        ]

    @classmethod
    def from_state(cls, state: list[Any], bound: int) -> Lessons:
        made = cls(bound)
        for row, scores in state:
            made._by_row[row] = Lesson({(u, SourceName(source)): score for u, source, score in scores})
        return made
