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
    """Row -> its lesson. Of each class the row that came to it longest ago stands first."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._by_row: dict[int, Lesson] = {}
        self._of_class: dict[bool, dict[int, None]] = {True: {}, False: {}}

    def __len__(self) -> int:
        return len(self._by_row)

    def rows(self) -> list[int]:
        return list(self._by_row)

    def harmful(self, row: int) -> bool:
        return row in self._of_class[True]

    def teach(self, key: ItemKey, score: float) -> None:
        """Past the bound the oldest lesson of the class that has more is forgotten: a rare class must
        not be crowded out."""
        lesson = self._by_row.setdefault(key.row, Lesson())
        lesson.scores[key.made_at, key.source] = score
        self._classify(key.row, lesson)
        if len(self._by_row) > self._bound:
            larger = max(self._of_class.values(), key=len)
            self._forget(next(iter(larger)))

    def withdraw(self, key: ItemKey) -> bool:
        """Takes back a verdict; False where it is not here. A row that has no other teaches no more."""
        lesson = self._by_row.get(key.row)
        if lesson is None or lesson.scores.pop((key.made_at, key.source), None) is None:
            return False
        if lesson.scores:
            self._classify(key.row, lesson)
        else:
            self._forget(key.row)
        return True

    def _classify(self, row: int, lesson: Lesson) -> None:
        self._of_class[lesson.harmful].setdefault(row)
        self._of_class[not lesson.harmful].pop(row, None)

    def _forget(self, row: int) -> None:
        del self._by_row[row]
        for rows in self._of_class.values():
            rows.pop(row, None)

    def to_state(self) -> dict[str, Any]:
        return {
            "scores": [
                [row, [[made_at, source.value, score] for (made_at, source), score in lesson.scores.items()]]
                for row, lesson in self._by_row.items()
            ],
            "harmful": list(self._of_class[True]),
            "harmless": list(self._of_class[False]),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], bound: int) -> Lessons:
        made = cls(bound)
        for row, scores in state["scores"]:
            made._by_row[row] = Lesson({(u, SourceName(source)): score for u, source, score in scores})
        made._of_class = {True: dict.fromkeys(state["harmful"]), False: dict.fromkeys(state["harmless"])}
        return made
