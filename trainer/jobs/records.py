"""What the store hands out and takes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from shared.jobs import CreateJob, JobError, JobStatus
from shared.training import Training
from trainer.jobs.states import Hold, Wanted

T = TypeVar("T")

Level = Literal["info", "warn", "error"]
Order = Literal["asc", "desc"]


@dataclass(frozen=True)
class Page(Generic[T]):
    data: list[T]
    has_more: bool


@dataclass(frozen=True)
class JobRecord:
    """A row of the table of jobs."""

    id: str
    created_at: float
    """Unix seconds, as every time here."""
    status: JobStatus
    request: CreateJob
    training: Training
    """The request over the base's defaults. `ranks` stays None until a runner has counted devices."""
    seed: int
    wanted: Wanted = Wanted.RUN
    hold: Hold | None = None
    reason: str | None = None
    """Why the job is held, or its model is not the last step's."""
    finished_at: float | None = None
    error: JobError | None = None
    fine_tuned_model: str | None = None
    result_files: tuple[str, ...] = ()
    trained_tokens: int | None = None
    step: int | None = None
    steps: int | None = None
    estimated_finish: float | None = None
    restarts: int = 0
    """Times that the run started again because a rank died."""
    events_offset: int = 0
    """Bytes of the run's event file that are in the store."""
    runner: str | None = None
    lease_until: float | None = None


@dataclass(frozen=True)
class NewEvent:
    """An event before it has an id. A metrics event has its step, and replaces that step's earlier one:
    a run that resumed from a checkpoint trains some steps again."""

    created_at: float
    level: Level
    message: str
    data: dict[str, Any] | None = None
    step: int | None = None

    @property
    def type(self) -> Literal["message", "metrics"]:
        return "message" if self.step is None else "metrics"


@dataclass(frozen=True)
class NewCheckpoint:
    created_at: float
    step: int
    path: str
    """Model folder, relative to the run's."""
    metrics: dict[str, float]


@dataclass(frozen=True)
class Progress:
    """How far a run is, as its newest metrics say."""

    step: int
    steps: int
    trained_tokens: int
    estimated_finish: float


@dataclass(frozen=True)
class Ingested:
    """What one reading of a run's event file found, in its order, and the offset after it."""

    events: tuple[NewEvent, ...]
    checkpoints: tuple[NewCheckpoint, ...]
    progress: Progress | None
    offset: int
