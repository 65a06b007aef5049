"""What becomes of a job when its run has ended. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from shared.jobs import JobError
from trainer.jobs.states import Hold, Wanted
from trainer.training.run_spec import Outcome, OutcomeStatus


@dataclass(frozen=True)
class Succeeded:
    outcome: Outcome


@dataclass(frozen=True)
class Failed:
    error: JobError


@dataclass(frozen=True)
class Cancelled:
    pass


@dataclass(frozen=True)
class Requeued:
    hold: Hold | None
    reason: str | None
    message: str


@dataclass(frozen=True)
class Restarted:
    message: str


Conclusion = Succeeded | Failed | Cancelled | Requeued | Restarted


def conclude(
    outcome: Outcome | None,
    *,
    wanted: Wanted,
    stopping: bool,
    exit_status: int,
    restarts: int,
    max_restarts: int,
    log: str,
) -> Conclusion:
    """`outcome` None: the run left no word, so a rank died. `stopping`: the runner itself was told to end.

    The owner's cancel goes before everything, an end that the run reached goes before a pause.
    """
    if wanted is Wanted.CANCEL:
        return Cancelled()
    if outcome is not None:
        match outcome.status:
            case OutcomeStatus.SUCCEEDED:
                return Succeeded(outcome)
            case OutcomeStatus.FAILED:
                error = outcome.error
                code, message = (
                    (error.code, error.message) if error else ("training_failed", "no reason given")
                )
                return Failed(JobError(code=code, message=message))
            case OutcomeStatus.PARKED if wanted is Wanted.RUN:
                reason = outcome.error.message if outcome.error else "the judge does not answer"
                return Requeued(Hold.JUDGE, reason, f"Parked at step {outcome.step}: {reason}")
            case OutcomeStatus.PARKED | OutcomeStatus.STOPPED:
                pass
    where = f" at step {outcome.step}" if outcome is not None else ""
    if wanted is Wanted.PAUSE:
        return Requeued(Hold.OWNER, "paused by request", f"The job is paused{where}")
    if stopping:
        return Requeued(None, None, f"The runner is stopping; the job is queued{where}")
    died = "was stopped from outside" if outcome is not None else f"lost a rank (exit status {exit_status})"
    if restarts < max_restarts:
        return Restarted(
            f"The run {died}; it starts again from its last checkpoint"
            f" (restart {restarts + 1} of {max_restarts})"
        )
    tried = f" after {restarts} restart{'s' if restarts != 1 else ''}" if restarts else ""
    return Failed(JobError(code="rank_died", message=f"the run {died}{tried}. The end of its log:\n{log}"))
