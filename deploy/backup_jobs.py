"""A backup of jobs, files and runs while the service works, as a tar on stdout. Standard library only.

    docker compose exec -T trainer-api python - < deploy/backup_jobs.py > state.tar

The database is copied first and at one moment. What is copied after it can only be newer: a run's events are
read on from where the database stands, and checkpoints that are still being written are left out.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import tarfile
import tempfile
from pathlib import Path

REBUILT = {"jobs.sqlite3", "jobs.sqlite3-wal", "jobs.sqlite3-shm", "up.lock"}


def main() -> None:
    state = Path(os.environ.get("TETHER_STATE_DIR", "/state"))
    with (
        tempfile.TemporaryDirectory(dir=state, prefix=".backup-") as scratch,
        tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar,
    ):
        copy = Path(scratch) / "jobs.sqlite3"
        with sqlite3.connect(state / "jobs.sqlite3", timeout=60) as db:
            db.execute("VACUUM INTO ?", [str(copy)])
        tar.add(copy, "jobs.sqlite3")
        for part in sorted(state.iterdir()):
            if part.name not in REBUILT:
                add(tar, part, state)


def add(tar: tarfile.TarFile, path: Path, root: Path) -> None:
    """What goes away meanwhile (an old checkpoint), and what is still being written, is left out."""
    if path.name.startswith((".backup-", ".partial-")):
        return
    try:
        if path.is_dir():
            for below in sorted(path.iterdir()):
                add(tar, below, root)
            return
        with path.open("rb") as file:
            info = tar.gettarinfo(arcname=str(path.relative_to(root)), fileobj=file)
            # Exactly as much as the header says, though the file may grow.
            tar.addfile(info, file)
    except FileNotFoundError:
        print(f"left out, it is gone: {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
