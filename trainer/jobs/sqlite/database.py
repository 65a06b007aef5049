"""The connection, its transactions, and what every part of the store does within one."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Self

from shared.jobs import JobStatus
from trainer.jobs.records import JobRecord, Level, NewEvent, Order, Page
from trainer.jobs.sqlite.rows import insert_event, update_job
from trainer.jobs.states import UnknownId, check_move

BUSY_TIMEOUT_S = 30.0


class Database:
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

    def __enter__(self) -> Self:
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

    def _end(
        self, db: sqlite3.Connection, job: JobRecord, status: JobStatus, reason: str | None = None
    ) -> None:
        check_move(job.id, job.status, status)
        update_job(
            db,
            job.id,
            status=status,
            finished_at=self._clock(),
            estimated_finish=None,
            hold=None,
            reason=reason,
            runner=None,
            lease_until=None,
        )

    def _say(
        self,
        db: sqlite3.Connection,
        job_id: str,
        level: Level,
        message: str,
        data: dict[str, Any] | None = None,
    ) -> None:
        insert_event(db, job_id, NewEvent(created_at=self._clock(), level=level, message=message, data=data))

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


def map_page(page: Page[sqlite3.Row], function: Callable[[sqlite3.Row], Any]) -> Page[Any]:
    return Page(data=[function(row) for row in page.data], has_more=page.has_more)
