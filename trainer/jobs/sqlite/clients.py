"""Jobs as their owners see and steer them, through the API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shared.jobs import TERMINAL, CreateJob, JobCheckpoint, JobEvent, JobStatus
from shared.training import Training
from trainer.jobs import ids
from trainer.jobs.records import JobRecord, Order, Page
from trainer.jobs.sqlite.database import Database, map_page
from trainer.jobs.sqlite.rows import checkpoint_of, event_of, load_job, record_of, update_job
from trainer.jobs.states import Hold, IllegalTransition, UnknownId, Wanted


class ClientJobs(Database):
    def create_job(self, request: CreateJob, training: Training, seed: int) -> JobRecord:
        job_id = ids.job_id()
        now = self._clock()
        with self._transaction() as db:
            # Read here again, so that a file cannot be deleted between the check and the job.
            for param in ("training_file", "validation_file"):
                named = getattr(request, param)
                if (
                    named is not None
                    and not db.execute("SELECT 1 FROM files WHERE id = ?", (named,)).fetchone()
                ):
                    raise UnknownId("file", named, param)
            db.execute(
                "INSERT INTO jobs (id, created_at, status, request, training, metadata, seed, training_file,"
                " validation_file) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    job_id,
                    now,
                    JobStatus.QUEUED.value,
                    request.model_dump_json(exclude_unset=True),
                    training.model_dump_json(),
                    None if request.metadata is None else json.dumps(request.metadata),
                    seed,
                    request.training_file,
                    request.validation_file,
                ),
            )
            self._say(db, job_id, "info", f"Created fine-tuning job: {job_id}")
            return load_job(db, job_id)

    def job(self, job_id: str) -> JobRecord:
        with self._transaction("DEFERRED") as db:
            return load_job(db, job_id)

    def jobs(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        metadata: Mapping[str, str] | None = None,
        without_metadata: bool = False,
    ) -> Page[JobRecord]:
        """Newest first. `metadata`: jobs that carry all of these pairs."""
        where = ["TRUE"]
        values: list[str] = []
        for key, value in (metadata or {}).items():
            where.append(
                "EXISTS (SELECT 1 FROM json_each(jobs.metadata) AS pair"
                " WHERE pair.key = ? AND pair.value = ?)"
            )
            values += [key, value]
        if without_metadata:
            where.append("metadata IS NULL")
        return map_page(self._page("jobs", " AND ".join(where), values, after, limit, "desc"), record_of)

    def fine_tuned(self) -> list[JobRecord]:
        """Jobs that ended with a model, newest first."""
        with self._transaction("DEFERRED") as db:
            rows = db.execute(
                "SELECT * FROM jobs WHERE fine_tuned_model IS NOT NULL ORDER BY seq DESC"
            ).fetchall()
        return [record_of(row) for row in rows]

    def cancel(self, job_id: str) -> JobRecord:
        """A queued job ends at once; a running one when its runner has stopped it."""
        with self._transaction() as db:
            job = load_job(db, job_id)
            if job.status is JobStatus.RUNNING:
                update_job(db, job_id, wanted=Wanted.CANCEL)
                if job.wanted is not Wanted.CANCEL:
                    self._say(db, job_id, "info", "Cancelling: the run is being stopped")
            else:
                self._end(db, job, JobStatus.CANCELLED)
                self._say(db, job_id, "info", "The job was cancelled")
            return load_job(db, job_id)

    def pause(self, job_id: str) -> JobRecord:
        """A queued job is held; a running one stops with a checkpoint, then is held."""
        reason = "paused by request"
        with self._transaction() as db:
            job = load_job(db, job_id)
            if job.status in TERMINAL or job.wanted is Wanted.CANCEL:
                raise IllegalTransition(job_id, job.status, "paused")
            if job.status is JobStatus.RUNNING and job.wanted is not Wanted.PAUSE:
                update_job(db, job_id, wanted=Wanted.PAUSE, reason=reason)
                self._say(db, job_id, "info", "Pausing: the run stops with a checkpoint")
            elif job.status is JobStatus.QUEUED and job.hold is not Hold.OWNER:
                update_job(db, job_id, hold=Hold.OWNER, reason=reason)
                self._say(db, job_id, "info", "The job is paused")
            return load_job(db, job_id)

    def resume(self, job_id: str) -> JobRecord:
        with self._transaction() as db:
            job = load_job(db, job_id)
            if job.status in TERMINAL or job.wanted is Wanted.CANCEL:
                raise IllegalTransition(job_id, job.status, "resumed")
            if job.hold is not None:
                update_job(db, job_id, hold=None, reason=None)
                self._say(db, job_id, "info", "The job is resumed: it is queued")
            elif job.wanted is Wanted.PAUSE:
                # The run may have been told to stop already; then it is queued without a hold.
                update_job(db, job_id, wanted=Wanted.RUN, reason=None)
                self._say(db, job_id, "info", "The job is resumed")
            return load_job(db, job_id)

    def events(
        self, job_id: str, *, after: str | None = None, limit: int = 20, order: Order = "desc"
    ) -> Page[JobEvent]:
        self.job(job_id)
        return map_page(self._page("events", "job_id = ?", [job_id], after, limit, order), event_of)

    def checkpoints(self, job_id: str, *, after: str | None = None, limit: int = 10) -> Page[JobCheckpoint]:
        """Newest first."""
        job = self.job(job_id)
        name = ids.fine_tuned_model(job.request.model, job.request.suffix, job_id)
        rows = self._page("checkpoints", "job_id = ?", [job_id], after, limit, "desc")
        return map_page(rows, lambda row: checkpoint_of(row, name))

    def metrics(self, job_id: str) -> list[dict[str, Any]]:
        """The run's metrics by step, each step once."""
        with self._transaction("DEFERRED") as db:
            rows = db.execute(
                "SELECT data FROM events WHERE job_id = ? AND step IS NOT NULL ORDER BY step", (job_id,)
            ).fetchall()
        return [json.loads(row["data"]) for row in rows]
