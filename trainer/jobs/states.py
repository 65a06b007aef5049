"""The states of a job and the moves between them."""

from __future__ import annotations

from enum import StrEnum

from shared.errors import TetherError
from shared.jobs import TERMINAL, JobStatus

MOVES: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.FAILED, JobStatus.CANCELLED}),
    # Back to queued: parked, paused, or its runner stopped.
    JobStatus.RUNNING: frozenset(
        {JobStatus.QUEUED, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}
    ),
    # Files are checked before a job exists; the status is OpenAI's and never ours.
    JobStatus.VALIDATING_FILES: frozenset(),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}


class Wanted(StrEnum):
    """What the owner asks of a running job; the runner that holds it carries it out."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


class Hold(StrEnum):
    """Why a queued job is not to be claimed: `safety.state` is then `paused`."""

    OWNER = "owner"  # until it is resumed by request
    JUDGE = "judge"  # until the judge answers again


class IllegalTransition(TetherError):
    code = "illegal_transition"

    def __init__(self, job_id: str, now: JobStatus, wanted: str) -> None:
        ended = f"job {job_id} has ended: {now.value}" if now in TERMINAL else f"job {job_id} is {now.value}"
        super().__init__(f"{ended}; it cannot become {wanted}")
        self.now = now


class LeaseLost(TetherError):
    """Another runner holds the job, or nobody: what this one still says of it is refused."""

    code = "lease_lost"


class UnknownId(TetherError):
    """No job, file or event has this id. `param` is the field that named it."""

    code = "not_found"

    def __init__(self, what: str, identifier: str, param: str) -> None:
        shown = identifier if len(identifier) <= 80 else identifier[:77] + "..."
        super().__init__(f"no {what} has the id {shown!r}")
        self.param = param


def check_move(job_id: str, now: JobStatus, new: JobStatus) -> None:
    if new not in MOVES[now]:
        raise IllegalTransition(job_id, now, new.value)
