"""A job as a client sees it."""

from __future__ import annotations

from shared.jobs import (
    Hyperparameters,
    Job,
    JobProgress,
    JobSafety,
    JobStatus,
    OpenAIMethod,
    SafetyState,
    SupervisedMethod,
)
from trainer.jobs.records import JobRecord
from trainer.jobs.resolve import hyperparameters


def job_view(record: JobRecord) -> Job:
    asked = hyperparameters(record.request)
    effective = Hyperparameters(
        batch_size=record.training.batch_size,
        n_epochs=record.training.n_epochs,
        learning_rate_multiplier=1.0
        if asked.learning_rate_multiplier == "auto"
        else asked.learning_rate_multiplier,
    )
    running = record.status is JobStatus.RUNNING
    return Job(
        id=record.id,
        created_at=int(record.created_at),
        finished_at=_seconds(record.finished_at),
        estimated_finish=_seconds(record.estimated_finish) if running else None,
        model=record.request.model,
        fine_tuned_model=record.fine_tuned_model,
        status=record.status,
        hyperparameters=effective,
        method=OpenAIMethod(supervised=SupervisedMethod(hyperparameters=effective)),
        training_file=record.request.training_file,
        validation_file=record.request.validation_file,
        result_files=list(record.result_files),
        trained_tokens=record.trained_tokens,
        seed=record.seed,
        metadata=record.request.metadata,
        error=record.error,
        suffix=record.request.suffix,
        safety=JobSafety(
            state=SafetyState.PAUSED if record.hold is not None else SafetyState.ACTIVE,
            reason=record.reason,
            method=record.request.safety.method.model_dump(mode="json"),
        ),
        training=record.training,
        progress=None
        if record.step is None or record.steps is None
        else JobProgress(step=record.step, steps=record.steps),
    )


def _seconds(value: float | None) -> int | None:
    return None if value is None else int(value)
