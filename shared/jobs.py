"""OpenAI's fine-tuning shapes, with two objects of our own beside the standard fields.

`safety` (what guards the run) is in safety.py, `training` (how it trains) in training.py; both may be left
out.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from shared.safety import Safety
from shared.settings import Settings
from shared.training import Training


class Hyperparameters(Settings):
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=65536)] = "auto"
    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=1000)] = "auto"
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0, le=1000)] = "auto"


class SupervisedMethod(Settings):
    hyperparameters: Hyperparameters = Hyperparameters()


class OpenAIMethod(Settings):
    """Of OpenAI's methods we offer the supervised one."""

    type: Literal["supervised"] = "supervised"
    supervised: SupervisedMethod = SupervisedMethod()


class CreateJob(Settings):
    model: str = Field(min_length=1, max_length=256)
    training_file: str = Field(min_length=1, max_length=256)
    validation_file: str | None = None
    method: OpenAIMethod | None = None
    hyperparameters: Hyperparameters = Hyperparameters()
    """OpenAI's older place for them; `method.supervised.hyperparameters` wins where both are given."""
    suffix: str | None = Field(default=None, min_length=1, max_length=64)
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    integrations: None = None
    safety: Safety = Safety()
    training: Training = Training()

    @model_validator(mode="after")
    def _metadata_fits(self) -> CreateJob:
        for key, value in (self.metadata or {}).items():
            if len(key) > 64 or len(value) > 512:
                raise ValueError(f"metadata[{key[:64]!r}]: keys hold 64 characters, values 512")
        return self


class JobStatus(StrEnum):
    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})


class SafetyState(StrEnum):
    """OpenAI's client has no `paused`: such a job is `queued` with this beside it."""

    ACTIVE = "active"
    PAUSED = "paused"


class JobError(BaseModel):
    code: str
    message: str
    param: str | None = None


class JobProgress(BaseModel):
    step: int
    steps: int


class JobSafety(BaseModel):
    """What guards the job, and how it stands."""

    state: SafetyState = SafetyState.ACTIVE
    reason: str | None = None
    method: dict[str, Any]


class Job(BaseModel):
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None = None
    estimated_finish: int | None = None
    model: str
    fine_tuned_model: str | None = None
    organization_id: str = "tether"
    status: JobStatus
    hyperparameters: Hyperparameters
    method: OpenAIMethod
    training_file: str
    validation_file: str | None = None
    result_files: list[str] = []
    trained_tokens: int | None = None
    seed: int
    metadata: dict[str, str] | None = None
    integrations: None = None
    error: JobError | None = None
    suffix: str | None = None
    safety: JobSafety
    training: Training
    progress: JobProgress | None = None


class JobEvent(BaseModel):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"] = "message"
    data: dict[str, Any] | None = None


class JobCheckpoint(BaseModel):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, float]


class File(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["fine-tune", "fine-tune-results"]
    status: Literal["processed", "uploaded", "error"] = "processed"
    expires_at: int | None = None
    status_details: str | None = None
