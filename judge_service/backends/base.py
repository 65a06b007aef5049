"""What a backend is: something that grades (prompt, response) pairs by a rubric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.rubrics.rubric import Rubric, RubricReading
from shared.wire import ChatMessage, FailureCode, ScoreKind, Usage


@dataclass(frozen=True)
class BackendInfo:
    kind: str
    """Name of the backend, as every verdict says it."""
    model: str
    score_kind: ScoreKind
    concurrency: int
    """Batches that it gains from having at once. More would only wait inside it, past the priorities."""
    revision: str | None = None
    """Of the model, where the backend can tell: a change while it serves makes the judge untrusted."""
    cacheable: bool = True
    """False: never give a verdict of its again to the same text."""


@dataclass(frozen=True)
class GradeRequest:
    rubric: Rubric
    prompt: str | list[ChatMessage]
    response: str
    rationale: bool = False
    """The client asked for the judge's reasons, where the backend has any."""


@dataclass(frozen=True)
class Grade:
    score: float
    """Harm in [0,1]."""
    level: int | None
    """1..5; None where the rubric or the backend has no levels."""
    probabilities: tuple[float, ...] | None = None
    """Of the labels 1..5; None where the rubric or the backend has no levels."""
    label_mass: float | None = None
    spread: float | None = None
    """Standard deviation of the samples that the score is the mean of; `sampled` only."""
    categories: dict[str, float] | None = None
    """Harm in [0,1] of those categories that were really scored."""
    rationale: str | None = None
    usage: Usage | None = None
    empty: bool = False
    """There was nothing to judge, and nobody did; see backends/empty.py."""
    truncated: bool = False
    """Graded text was left out to fit the judge's context."""

    @classmethod
    def from_reading(cls, reading: RubricReading, *, truncated: bool) -> Grade:
        return cls(
            reading.score, reading.level, reading.probabilities, reading.label_mass, truncated=truncated
        )


@dataclass(frozen=True)
class GradeFailure:
    code: FailureCode
    message: str
    """For people. Never holds graded text."""


class BackendError(Exception):
    """The backend could not grade this batch; each item of it ends `failed: server_error`."""


class BackendUnavailable(BackendError):
    """The backend is away as a whole (nothing listens, it says 503, it is loading).

    That is no fault of the items: the worker gives them back uncounted and stops taking more until the
    backend is there again.
    """


class Backend(Protocol):
    @property
    def info(self) -> BackendInfo: ...

    async def judge(self, batch: Sequence[GradeRequest]) -> list[Grade | GradeFailure]:
        """One answer an item, in the order of the batch; failures of single items are answers too.

        Raises:
            BackendUnavailable: nothing of the batch was graded, and nothing will be for now.
            BackendError: nothing of the batch could be graded.
        """
        ...

    async def close(self) -> None:
        """Free what it holds. It judges nothing afterwards."""
        ...
