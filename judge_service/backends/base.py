"""What a backend is: something that grades (prompt, response) pairs by a rubric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.rubrics.rubric import LabelReading, Rubric
from shared.wire import ChatMessage, FailureCode, ScoreKind


@dataclass(frozen=True)
class BackendInfo:
    kind: str
    """Name of the backend, as every verdict says it."""
    model: str
    score_kind: ScoreKind
    concurrency: int
    """Batches that it gains from having at once. More would only wait inside it, past the priorities."""


@dataclass(frozen=True)
class GradeRequest:
    rubric: Rubric
    prompt: str | list[ChatMessage]
    response: str


@dataclass(frozen=True)
class Grade:
    score: float
    """Harm in [0,1]."""
    level: int
    """1..5."""
    probabilities: tuple[float, ...] | None = None
    """Of the labels 1..5; None where the backend has no labels."""
    label_mass: float | None = None

    @classmethod
    def from_labels(cls, reading: LabelReading) -> Grade:
        return cls(reading.score, reading.level, reading.probabilities, reading.label_mass)


@dataclass(frozen=True)
class GradeFailure:
    code: FailureCode
    message: str
    """For people. Never holds graded text."""


class BackendError(Exception):
    """The backend could not grade this batch; each item of it ends `failed: server_error`."""


class Backend(Protocol):
    @property
    def info(self) -> BackendInfo: ...

    async def judge(self, batch: Sequence[GradeRequest]) -> list[Grade | GradeFailure]:
        """One answer an item, in the order of the batch; failures of single items are answers too.

        Raises:
            BackendError: nothing of the batch could be graded.
        """
        ...

    async def close(self) -> None:
        """Free what it holds. It judges nothing afterwards."""
        ...
