"""Files: what is there, and which job still needs it."""

from __future__ import annotations

from shared.errors import TetherError
from shared.jobs import TERMINAL, File, JobStatus
from trainer.jobs.records import Order, Page
from trainer.jobs.sqlite.database import Database, map_page
from trainer.jobs.sqlite.rows import file_of, insert_file
from trainer.jobs.states import UnknownId


class FileInUse(TetherError):
    code = "file_in_use"


class Files(Database):
    def add_file(self, file: File) -> None:
        with self._transaction() as db:
            insert_file(db, file)

    def file(self, file_id: str, *, param: str = "file_id") -> File:
        with self._transaction("DEFERRED") as db:
            row = db.execute("SELECT * FROM files WHERE id = ?", (file_id,)).fetchone()
        if row is None:
            raise UnknownId("file", file_id, param)
        return file_of(row)

    def files(
        self,
        *,
        after: str | None = None,
        limit: int = 10_000,
        order: Order = "desc",
        purpose: str | None = None,
    ) -> Page[File]:
        where, values = ("purpose = ?", [purpose]) if purpose is not None else ("TRUE", [])
        return map_page(self._page("files", where, values, after, limit, order), file_of)

    def delete_file(self, file_id: str) -> None:
        """Raises FileInUse while a job that has not ended reads it."""
        with self._transaction() as db:
            user = db.execute(
                f"SELECT id FROM jobs WHERE (training_file = ? OR validation_file = ?)"
                f" AND status NOT IN ({marks(TERMINAL)}) LIMIT 1",
                (file_id, file_id, *values_of(TERMINAL)),
            ).fetchone()
            if user is not None:
                raise FileInUse(f"file {file_id} is used by job {user['id']}; cancel that job first")
            if db.execute("DELETE FROM files WHERE id = ?", (file_id,)).rowcount == 0:
                raise UnknownId("file", file_id, "file_id")


def marks(items: frozenset[JobStatus]) -> str:
    return ", ".join("?" * len(items))


def values_of(items: frozenset[JobStatus]) -> list[str]:
    return sorted(item.value for item in items)
