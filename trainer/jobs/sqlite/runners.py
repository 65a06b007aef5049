"""Jobs as runners claim, feed and end them.

What a runner writes names the runner, and is refused with LeaseLost once another has claimed the job.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from shared.jobs import File, JobError, JobStatus
from shared.training import Training
from trainer.jobs import ids
from trainer.jobs.records import Ingested, JobRecord, Level
from trainer.jobs.sqlite.database import Database
from trainer.jobs.sqlite.rows import insert_event, insert_file, leased_job, load_job, record_of, update_job
from trainer.jobs.states import Hold, Wanted, check_move

RUNNER_ALIVE_S = 30.0
"""A runner that was seen within this long counts as alive."""


class RunnerJobs(Database):
    def runner_seen(self, runner: str) -> None:
        now = self._clock()
        with self._transaction() as db:
            fresh = db.execute(
                "SELECT 1 FROM runners WHERE id = ? AND seen_at > ?", (runner, now - RUNNER_ALIVE_S / 4)
            ).fetchone()
            if fresh is not None:
                return
            db.execute(
                "INSERT INTO runners (id, seen_at) VALUES (?, ?)"
                " ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at",
                (runner, now),
            )
            db.execute("DELETE FROM runners WHERE seen_at < ?", (now - 100 * RUNNER_ALIVE_S,))

    def runner_gone(self, runner: str) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM runners WHERE id = ?", (runner,))

    def runners_alive(self) -> int:
        with self._transaction("DEFERRED") as db:
            row = db.execute(
                "SELECT count(*) AS n FROM runners WHERE seen_at >= ?", (self._clock() - RUNNER_ALIVE_S,)
            ).fetchone()
        return int(row["n"])

    def claim(self, runner: str, lease_s: float) -> JobRecord | None:
        """The running job whose runner's lease has run out, else the oldest queued one that is not held.

        It is `running` and this runner's until `lease_s` from now, unless the lease is renewed. A job
        that is taken over may be wanted cancelled or paused.
        """
        with self._transaction() as db:
            now = self._clock()
            row = db.execute(
                "SELECT * FROM jobs WHERE status = ? AND lease_until < ? ORDER BY seq LIMIT 1",
                (JobStatus.RUNNING.value, now),
            ).fetchone()
            if row is not None:
                job = record_of(row)
                update_job(db, job.id, runner=runner, lease_until=now + lease_s)
                self._say(db, job.id, "warn", f"Runner {job.runner} stopped answering; {runner} takes over")
                return load_job(db, job.id)
            row = db.execute(
                "SELECT * FROM jobs WHERE status = ? AND hold IS NULL ORDER BY seq LIMIT 1",
                (JobStatus.QUEUED.value,),
            ).fetchone()
            if row is None:
                return None
            job = record_of(row)
            check_move(job.id, job.status, JobStatus.RUNNING)
            update_job(
                db,
                job.id,
                status=JobStatus.RUNNING,
                wanted=Wanted.RUN,
                runner=runner,
                lease_until=now + lease_s,
            )
            return load_job(db, job.id)

    def heartbeat(self, job_id: str, runner: str, lease_s: float) -> Wanted:
        """Renews the lease; says what the owner wants of the job.

        Cheap when called often: the lease is written anew only once a quarter of it has gone.
        """
        with self._transaction() as db:
            job = leased_job(db, job_id, runner)
            until = self._clock() + lease_s
            if job.lease_until is None or job.lease_until < until - lease_s / 4:
                update_job(db, job_id, lease_until=until)
            return job.wanted

    def set_training(self, job_id: str, runner: str, training: Training) -> None:
        """The settings with nothing left open, as the run gets them."""
        with self._transaction() as db:
            leased_job(db, job_id, runner)
            db.execute("UPDATE jobs SET training = ? WHERE id = ?", (training.model_dump_json(), job_id))

    def say(
        self, job_id: str, runner: str, level: Level, message: str, data: dict[str, Any] | None = None
    ) -> None:
        with self._transaction() as db:
            leased_job(db, job_id, runner)
            self._say(db, job_id, level, message, data)

    def ingest(self, job_id: str, runner: str, read: Ingested) -> None:
        """What the run wrote and how far it was read, together: a crash in between repeats nothing."""
        with self._transaction() as db:
            leased_job(db, job_id, runner)
            for event in read.events:
                insert_event(db, job_id, event)
            for checkpoint in read.checkpoints:
                db.execute(
                    "INSERT INTO checkpoints (id, job_id, created_at, step, path, metrics)"
                    " VALUES (?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT (job_id, step) DO UPDATE"
                    " SET path = excluded.path, metrics = excluded.metrics",
                    (
                        ids.checkpoint_id(),
                        job_id,
                        checkpoint.created_at,
                        checkpoint.step,
                        checkpoint.path,
                        json.dumps(checkpoint.metrics),
                    ),
                )
            changes: dict[str, Any] = {"events_offset": read.offset}
            if read.progress is not None:
                changes |= {
                    "step": read.progress.step,
                    "steps": read.progress.steps,
                    "trained_tokens": read.progress.trained_tokens,
                    "estimated_finish": read.progress.estimated_finish,
                }
            update_job(db, job_id, **changes)

    def count_restart(self, job_id: str, runner: str, message: str) -> None:
        with self._transaction() as db:
            job = leased_job(db, job_id, runner)
            update_job(db, job_id, restarts=job.restarts + 1)
            self._say(db, job_id, "warn", message)

    def requeue(self, job_id: str, runner: str, hold: Hold | None, reason: str | None, message: str) -> None:
        """Back to the queue, with its checkpoints: parked, paused, or the runner stops."""
        with self._transaction() as db:
            self._queue(db, leased_job(db, job_id, runner), hold, reason)
            self._say(db, job_id, "warn" if hold is Hold.JUDGE else "info", message)

    def held_by_judge(self) -> list[JobRecord]:
        with self._transaction("DEFERRED") as db:
            rows = db.execute(
                "SELECT * FROM jobs WHERE hold = ? ORDER BY seq", (Hold.JUDGE.value,)
            ).fetchall()
        return [record_of(row) for row in rows]

    def release(self, job_id: str, message: str) -> None:
        """A job that waited for the judge goes back to the queue. Nothing, where it waits no more."""
        with self._transaction() as db:
            if load_job(db, job_id).hold is Hold.JUDGE:
                update_job(db, job_id, hold=None, reason=None)
                self._say(db, job_id, "info", message)

    def succeed(
        self,
        job_id: str,
        runner: str,
        model: str,
        tokens: int,
        results: Sequence[File],
        message: str,
        *,
        reason: str | None = None,
    ) -> None:
        """`reason`: what there is to say of the model, in the job's safety object."""
        with self._transaction() as db:
            job = leased_job(db, job_id, runner)
            self._results(db, job_id, results)
            update_job(db, job_id, fine_tuned_model=model, trained_tokens=tokens)
            self._end(db, job, JobStatus.SUCCEEDED, reason)
            self._say(db, job_id, "info", message)

    def fail(self, job_id: str, runner: str, error: JobError, results: Sequence[File] = ()) -> None:
        with self._transaction() as db:
            job = leased_job(db, job_id, runner)
            self._results(db, job_id, results)
            db.execute("UPDATE jobs SET error = ? WHERE id = ?", (error.model_dump_json(), job_id))
            self._end(db, job, JobStatus.FAILED)
            self._say(db, job_id, "error", f"The job failed: {error.message}", {"code": error.code})

    def cancelled(self, job_id: str, runner: str) -> None:
        """The run is stopped and its weights are gone, so no checkpoint is listed any more."""
        with self._transaction() as db:
            job = leased_job(db, job_id, runner)
            db.execute("DELETE FROM checkpoints WHERE job_id = ?", (job_id,))
            self._end(db, job, JobStatus.CANCELLED)
            self._say(db, job_id, "info", "The job was cancelled")

    def _queue(self, db: sqlite3.Connection, job: JobRecord, hold: Hold | None, reason: str | None) -> None:
        check_move(job.id, job.status, JobStatus.QUEUED)
        update_job(
            db,
            job.id,
            status=JobStatus.QUEUED,
            wanted=Wanted.RUN,
            hold=hold,
            reason=reason,
            estimated_finish=None,
            runner=None,
            lease_until=None,
        )

    def _results(self, db: sqlite3.Connection, job_id: str, results: Sequence[File]) -> None:
        for file in results:
            insert_file(db, file)
        db.execute(
            "UPDATE jobs SET result_files = ? WHERE id = ?",
            (json.dumps([file.id for file in results]), job_id),
        )
