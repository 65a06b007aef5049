"""Jobs, files, events and checkpoints in one SQLite file (docs/decisions/0001-sqlite-job-store.md).

Every method is one transaction. What a runner writes names the runner, and is refused with LeaseLost
once another has claimed the job.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from shared.errors import TetherError
from shared.jobs import TERMINAL, CreateJob, File, JobCheckpoint, JobError, JobEvent, JobStatus, Training
from trainer.jobs import ids
from trainer.jobs.records import Ingested, JobRecord, Level, NewEvent, Order, Page
from trainer.jobs.states import Hold, IllegalTransition, LeaseLost, UnknownId, Wanted, check_move

BUSY_TIMEOUT_S = 30.0
RUNNER_ALIVE_S = 30.0
"""A runner that was seen within this long counts as alive."""


class FileInUse(TetherError):
    code = "file_in_use"


class Store:
    """One connection, shared by the threads of a process; SQLite keeps processes apart.

    `clock` gives Unix seconds. Close it, or use it as a context manager.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        self._connection.row_factory = sqlite3.Row
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.executescript(
            resources.files("trainer.jobs").joinpath("schema.sql").read_text(encoding="utf-8")
        )

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """IMMEDIATE: what is read stays true until it is written."""
        with self._lock:
            self._connection.execute(f"BEGIN {kind}")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    # --- files ---------------------------------------------------------------------------------

    def add_file(self, file: File) -> None:
        with self._transaction() as db:
            _insert_file(db, file)

    def file(self, file_id: str, *, param: str = "file_id") -> File:
        with self._transaction("DEFERRED") as db:
            row = db.execute("SELECT * FROM files WHERE id = ?", (file_id,)).fetchone()
        if row is None:
            raise UnknownId("file", file_id, param)
        return _file(row)

    def files(
        self,
        *,
        after: str | None = None,
        limit: int = 10_000,
        order: Order = "desc",
        purpose: str | None = None,
    ) -> Page[File]:
        where, values = ("purpose = ?", [purpose]) if purpose is not None else ("TRUE", [])
        return _map(self._page("files", where, values, after, limit, order), _file)

    def delete_file(self, file_id: str) -> None:
        """Raises FileInUse while a job that has not ended reads it."""
        with self._transaction() as db:
            user = db.execute(
                f"SELECT id FROM jobs WHERE (training_file = ? OR validation_file = ?)"
                f" AND status NOT IN ({_marks(TERMINAL)}) LIMIT 1",
                (file_id, file_id, *_values(TERMINAL)),
            ).fetchone()
            if user is not None:
                raise FileInUse(f"file {file_id} is used by job {user['id']}; cancel that job first")
            if db.execute("DELETE FROM files WHERE id = ?", (file_id,)).rowcount == 0:
                raise UnknownId("file", file_id, "file_id")

    # --- jobs, as the API sees them ----------------------------------------------------------------

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
            return _load(db, job_id)

    def job(self, job_id: str) -> JobRecord:
        with self._transaction("DEFERRED") as db:
            return _load(db, job_id)

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
        return _map(self._page("jobs", " AND ".join(where), values, after, limit, "desc"), _record)

    def fine_tuned(self) -> list[JobRecord]:
        """Jobs that ended with a model, newest first."""
        with self._transaction("DEFERRED") as db:
            rows = db.execute(
                "SELECT * FROM jobs WHERE fine_tuned_model IS NOT NULL ORDER BY seq DESC"
            ).fetchall()
        return [_record(row) for row in rows]

    def cancel(self, job_id: str) -> JobRecord:
        """A queued job ends at once; a running one when its runner has stopped it."""
        with self._transaction() as db:
            job = _load(db, job_id)
            if job.status is JobStatus.RUNNING:
                _update(db, job_id, wanted=Wanted.CANCEL)
                if job.wanted is not Wanted.CANCEL:
                    self._say(db, job_id, "info", "Cancelling: the run is being stopped")
            else:
                self._end(db, job, JobStatus.CANCELLED)
                self._say(db, job_id, "info", "The job was cancelled")
            return _load(db, job_id)

    def pause(self, job_id: str) -> JobRecord:
        """A queued job is held; a running one stops with a checkpoint, then is held."""
        reason = "paused by request"
        with self._transaction() as db:
            job = _load(db, job_id)
            if job.status in TERMINAL or job.wanted is Wanted.CANCEL:
                raise IllegalTransition(job_id, job.status, "paused")
            if job.status is JobStatus.RUNNING and job.wanted is not Wanted.PAUSE:
                _update(db, job_id, wanted=Wanted.PAUSE, reason=reason)
                self._say(db, job_id, "info", "Pausing: the run stops with a checkpoint")
            elif job.status is JobStatus.QUEUED and job.hold is not Hold.OWNER:
                _update(db, job_id, hold=Hold.OWNER, reason=reason)
                self._say(db, job_id, "info", "The job is paused")
            return _load(db, job_id)

    def resume(self, job_id: str) -> JobRecord:
        with self._transaction() as db:
            job = _load(db, job_id)
            if job.status in TERMINAL or job.wanted is Wanted.CANCEL:
                raise IllegalTransition(job_id, job.status, "resumed")
            if job.hold is not None:
                _update(db, job_id, hold=None, reason=None)
                self._say(db, job_id, "info", "The job is resumed: it is queued")
            elif job.wanted is Wanted.PAUSE:
                # The run may have been told to stop already; then it is queued without a hold.
                _update(db, job_id, wanted=Wanted.RUN, reason=None)
                self._say(db, job_id, "info", "The job is resumed")
            return _load(db, job_id)

    def events(
        self, job_id: str, *, after: str | None = None, limit: int = 20, order: Order = "desc"
    ) -> Page[JobEvent]:
        self.job(job_id)
        return _map(self._page("events", "job_id = ?", [job_id], after, limit, order), _event)

    def checkpoints(self, job_id: str, *, after: str | None = None, limit: int = 10) -> Page[JobCheckpoint]:
        """Newest first."""
        job = self.job(job_id)
        name = ids.fine_tuned_model(job.request.model, job.request.suffix, job_id)
        rows = self._page("checkpoints", "job_id = ?", [job_id], after, limit, "desc")
        return _map(rows, lambda row: _checkpoint(row, name))

    def metrics(self, job_id: str) -> list[dict[str, Any]]:
        """The run's metrics by step, each step once."""
        with self._transaction("DEFERRED") as db:
            rows = db.execute(
                "SELECT data FROM events WHERE job_id = ? AND step IS NOT NULL ORDER BY step", (job_id,)
            ).fetchall()
        return [json.loads(row["data"]) for row in rows]

    # --- runners ---------------------------------------------------------------------------------

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
                job = _record(row)
                _update(db, job.id, runner=runner, lease_until=now + lease_s)
                self._say(db, job.id, "warn", f"Runner {job.runner} stopped answering; {runner} takes over")
                return _load(db, job.id)
            row = db.execute(
                "SELECT * FROM jobs WHERE status = ? AND hold IS NULL ORDER BY seq LIMIT 1",
                (JobStatus.QUEUED.value,),
            ).fetchone()
            if row is None:
                return None
            job = _record(row)
            check_move(job.id, job.status, JobStatus.RUNNING)
            _update(
                db,
                job.id,
                status=JobStatus.RUNNING,
                wanted=Wanted.RUN,
                runner=runner,
                lease_until=now + lease_s,
            )
            return _load(db, job.id)

    def heartbeat(self, job_id: str, runner: str, lease_s: float) -> Wanted:
        """Renews the lease; says what the owner wants of the job.

        Cheap when called often: the lease is written anew only once a quarter of it has gone.
        """
        with self._transaction() as db:
            job = _leased(db, job_id, runner)
            until = self._clock() + lease_s
            if job.lease_until is None or job.lease_until < until - lease_s / 4:
                _update(db, job_id, lease_until=until)
            return job.wanted

    def set_training(self, job_id: str, runner: str, training: Training) -> None:
        """The settings with nothing left open, as the run gets them."""
        with self._transaction() as db:
            _leased(db, job_id, runner)
            db.execute("UPDATE jobs SET training = ? WHERE id = ?", (training.model_dump_json(), job_id))

    def say(
        self, job_id: str, runner: str, level: Level, message: str, data: dict[str, Any] | None = None
    ) -> None:
        with self._transaction() as db:
            _leased(db, job_id, runner)
            self._say(db, job_id, level, message, data)

    def ingest(self, job_id: str, runner: str, read: Ingested) -> None:
        """What the run wrote and how far it was read, together: a crash in between repeats nothing."""
        with self._transaction() as db:
            _leased(db, job_id, runner)
            for event in read.events:
                _insert_event(db, job_id, event)
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
            _update(db, job_id, **changes)

    def count_restart(self, job_id: str, runner: str, message: str) -> None:
        with self._transaction() as db:
            job = _leased(db, job_id, runner)
            _update(db, job_id, restarts=job.restarts + 1)
            self._say(db, job_id, "warn", message)

    def requeue(self, job_id: str, runner: str, hold: Hold | None, reason: str | None, message: str) -> None:
        """Back to the queue, with its checkpoints: parked, paused, or the runner stops."""
        with self._transaction() as db:
            self._queue(db, _leased(db, job_id, runner), hold, reason)
            self._say(db, job_id, "warn" if hold is Hold.JUDGE else "info", message)

    def held_by_judge(self) -> list[JobRecord]:
        with self._transaction("DEFERRED") as db:
            rows = db.execute(
                "SELECT * FROM jobs WHERE hold = ? ORDER BY seq", (Hold.JUDGE.value,)
            ).fetchall()
        return [_record(row) for row in rows]

    def release(self, job_id: str, message: str) -> None:
        """A job that waited for the judge goes back to the queue. Nothing, where it waits no more."""
        with self._transaction() as db:
            if _load(db, job_id).hold is Hold.JUDGE:
                _update(db, job_id, hold=None, reason=None)
                self._say(db, job_id, "info", message)

    def succeed(
        self, job_id: str, runner: str, model: str, tokens: int, results: Sequence[File], message: str
    ) -> None:
        with self._transaction() as db:
            job = _leased(db, job_id, runner)
            self._results(db, job_id, results)
            _update(db, job_id, fine_tuned_model=model, trained_tokens=tokens)
            self._end(db, job, JobStatus.SUCCEEDED)
            self._say(db, job_id, "info", message)

    def fail(self, job_id: str, runner: str, error: JobError, results: Sequence[File] = ()) -> None:
        with self._transaction() as db:
            job = _leased(db, job_id, runner)
            self._results(db, job_id, results)
            db.execute("UPDATE jobs SET error = ? WHERE id = ?", (error.model_dump_json(), job_id))
            self._end(db, job, JobStatus.FAILED)
            self._say(db, job_id, "error", f"The job failed: {error.message}", {"code": error.code})

    def cancelled(self, job_id: str, runner: str) -> None:
        """The run is stopped and its weights are gone, so no checkpoint is listed any more."""
        with self._transaction() as db:
            job = _leased(db, job_id, runner)
            db.execute("DELETE FROM checkpoints WHERE job_id = ?", (job_id,))
            self._end(db, job, JobStatus.CANCELLED)
            self._say(db, job_id, "info", "The job was cancelled")

    # --- within a transaction ----------------------------------------------------------------------

    def _end(self, db: sqlite3.Connection, job: JobRecord, status: JobStatus) -> None:
        check_move(job.id, job.status, status)
        _update(
            db,
            job.id,
            status=status,
            finished_at=self._clock(),
            estimated_finish=None,
            hold=None,
            reason=None,
            runner=None,
            lease_until=None,
        )

    def _queue(self, db: sqlite3.Connection, job: JobRecord, hold: Hold | None, reason: str | None) -> None:
        check_move(job.id, job.status, JobStatus.QUEUED)
        _update(
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
            _insert_file(db, file)
        db.execute(
            "UPDATE jobs SET result_files = ? WHERE id = ?",
            (json.dumps([file.id for file in results]), job_id),
        )

    def _say(
        self,
        db: sqlite3.Connection,
        job_id: str,
        level: Level,
        message: str,
        data: dict[str, Any] | None = None,
    ) -> None:
        _insert_event(db, job_id, NewEvent(created_at=self._clock(), level=level, message=message, data=data))

    def _page(
        self, table: str, where: str, values: Sequence[Any], after: str | None, limit: int, order: Order
    ) -> Page[sqlite3.Row]:
        """`table`, `where` and `order` are ours, never a client's."""
        with self._transaction("DEFERRED") as db:
            bound = ""
            if after is not None:
                last = db.execute(
                    f"SELECT seq FROM {table} WHERE id = ? AND {where}", (after, *values)
                ).fetchone()
                if last is None:
                    raise UnknownId(table.removesuffix("s"), after, "after")
                bound = f"AND seq {'<' if order == 'desc' else '>'} {int(last['seq'])}"
            rows = db.execute(
                f"SELECT * FROM {table} WHERE {where} {bound} ORDER BY seq {order} LIMIT ?",
                (*values, limit + 1),
            ).fetchall()
        return Page(data=rows[:limit], has_more=len(rows) > limit)


def _map(page: Page[sqlite3.Row], function: Callable[[sqlite3.Row], Any]) -> Page[Any]:
    return Page(data=[function(row) for row in page.data], has_more=page.has_more)


def _marks(items: frozenset[JobStatus]) -> str:
    return ", ".join("?" * len(items))


def _values(items: frozenset[JobStatus]) -> list[str]:
    return sorted(item.value for item in items)


def _update(db: sqlite3.Connection, job_id: str, **changes: Any) -> None:
    columns = ", ".join(f"{name} = ?" for name in changes)
    db.execute(f"UPDATE jobs SET {columns} WHERE id = ?", (*changes.values(), job_id))


def _load(db: sqlite3.Connection, job_id: str) -> JobRecord:
    row = db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        raise UnknownId("fine-tuning job", job_id, "fine_tuning_job_id")
    return _record(row)


def _leased(db: sqlite3.Connection, job_id: str, runner: str) -> JobRecord:
    job = _load(db, job_id)
    if job.status is not JobStatus.RUNNING or job.runner != runner:
        raise LeaseLost(f"job {job_id} is {job.status.value}, held by {job.runner}, and not by {runner}")
    return job


def _insert_file(db: sqlite3.Connection, file: File) -> None:
    db.execute(
        "INSERT INTO files (id, created_at, filename, purpose, bytes) VALUES (?, ?, ?, ?, ?)",
        (file.id, file.created_at, file.filename, file.purpose, file.bytes),
    )


def _insert_event(db: sqlite3.Connection, job_id: str, event: NewEvent) -> None:
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


def _file(row: sqlite3.Row) -> File:
    return File(
        id=row["id"],
        bytes=row["bytes"],
        created_at=int(row["created_at"]),
        filename=row["filename"],
        purpose=row["purpose"],
    )


def _event(row: sqlite3.Row) -> JobEvent:
    return JobEvent(
        id=row["id"],
        created_at=int(row["created_at"]),
        level=row["level"],
        message=row["message"],
        type="message" if row["step"] is None else "metrics",
        data=None if row["data"] is None else json.loads(row["data"]),
    )


def _checkpoint(row: sqlite3.Row, model: str) -> JobCheckpoint:
    return JobCheckpoint(
        id=row["id"],
        created_at=int(row["created_at"]),
        fine_tuned_model_checkpoint=f"{model}:ckpt-step-{row['step']}",
        fine_tuning_job_id=row["job_id"],
        step_number=row["step"],
        metrics=json.loads(row["metrics"]),
    )


def _record(row: sqlite3.Row) -> JobRecord:
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
