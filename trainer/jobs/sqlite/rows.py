"""Rows of the job database and the records they stand for."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from shared.jobs import CreateJob, File, JobCheckpoint, JobError, JobEvent, JobStatus
from shared.training import Training
from trainer.jobs import ids
from trainer.jobs.records import JobRecord, NewEvent
from trainer.jobs.states import Hold, LeaseLost, UnknownId, Wanted


def update_job(db: sqlite3.Connection, job_id: str, **changes: Any) -> None:
    columns = ", ".join(f"{name} = ?" for name in changes)
    db.execute(f"UPDATE jobs SET {columns} WHERE id = ?", (*changes.values(), job_id))


def load_job(db: sqlite3.Connection, job_id: str) -> JobRecord:
    row = db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        raise UnknownId("fine-tuning job", job_id, "fine_tuning_job_id")
    return record_of(row)


def leased_job(db: sqlite3.Connection, job_id: str, runner: str) -> JobRecord:
    job = load_job(db, job_id)
    if job.status is not JobStatus.RUNNING or job.runner != runner:
        raise LeaseLost(f"job {job_id} is {job.status.value}, held by {job.runner}, and not by {runner}")
    return job


def insert_file(db: sqlite3.Connection, file: File) -> None:
    db.execute(
        "INSERT INTO files (id, created_at, filename, purpose, bytes) VALUES (?, ?, ?, ?, ?)",
        (file.id, file.created_at, file.filename, file.purpose, file.bytes),
    )


def insert_event(db: sqlite3.Connection, job_id: str, event: NewEvent) -> None:
    db.execute(
        "INSERT INTO events (id, job_id, created_at, level, message, data, step) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (job_id, step) WHERE step IS NOT NULL DO UPDATE"
        " SET created_at = excluded.created_at, message = excluded.message, data = excluded.data",
        (
            ids.event_id(),
            job_id,
            event.created_at,
            event.level,
            event.message,
            None if event.data is None else json.dumps(event.data),
            event.step,
        ),
    )


def file_of(row: sqlite3.Row) -> File:
    return File(
        id=row["id"],
        bytes=row["bytes"],
        created_at=int(row["created_at"]),
        filename=row["filename"],
        purpose=row["purpose"],
    )


def event_of(row: sqlite3.Row) -> JobEvent:
    return JobEvent(
        id=row["id"],
        created_at=int(row["created_at"]),
        level=row["level"],
        message=row["message"],
        type="message" if row["step"] is None else "metrics",
        data=None if row["data"] is None else json.loads(row["data"]),
    )


def checkpoint_of(row: sqlite3.Row, model: str) -> JobCheckpoint:
    return JobCheckpoint(
        id=row["id"],
        created_at=int(row["created_at"]),
        fine_tuned_model_checkpoint=f"{model}:ckpt-step-{row['step']}",
        fine_tuning_job_id=row["job_id"],
        step_number=row["step"],
        metrics=json.loads(row["metrics"]),
    )


def record_of(row: sqlite3.Row) -> JobRecord:
    return JobRecord(
        id=row["id"],
        created_at=row["created_at"],
        status=JobStatus(row["status"]),
        request=CreateJob.model_validate_json(row["request"]),
        training=Training.model_validate_json(row["training"]),
        seed=row["seed"],
        wanted=Wanted(row["wanted"]),
        hold=None if row["hold"] is None else Hold(row["hold"]),
        reason=row["reason"],
        finished_at=row["finished_at"],
        error=None if row["error"] is None else JobError.model_validate_json(row["error"]),
        fine_tuned_model=row["fine_tuned_model"],
        result_files=tuple(json.loads(row["result_files"])),
        trained_tokens=row["trained_tokens"],
        step=row["step"],
        steps=row["steps"],
        estimated_finish=row["estimated_finish"],
        restarts=row["restarts"],
        events_offset=row["events_offset"],
        runner=row["runner"],
        lease_until=row["lease_until"],
    )
