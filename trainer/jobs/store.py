"""Jobs, files, events and checkpoints in one SQLite file (docs/decisions/0001-sqlite-job-store.md).

Every method is one transaction.
"""

from __future__ import annotations

from trainer.jobs.sqlite.clients import ClientJobs
from trainer.jobs.sqlite.files import FileInUse as FileInUse
from trainer.jobs.sqlite.files import Files
from trainer.jobs.sqlite.overview import Overviews
from trainer.jobs.sqlite.runners import RUNNER_ALIVE_S as RUNNER_ALIVE_S
from trainer.jobs.sqlite.runners import RunnerJobs


class Store(Files, ClientJobs, RunnerJobs, Overviews):
    """All of it, over one connection."""
