"""Which checkpoint of a run may be published, by what the canaries said of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.safety.canary import CanaryLog
from trainer.training import checkpoint
from trainer.training.distributed import Collective
from trainer.training.run_spec import OutcomeError

NONE = -1


@dataclass(frozen=True)
class LastStep:
    """The model as it stands at the end."""


@dataclass(frozen=True)
class Earlier:
    step: int
    message: str


@dataclass(frozen=True)
class NoStep:
    error: OutcomeError


def last_within(log: CanaryLog, checkpoints: Path, collective: Collective) -> int | None:
    """The newest step that may be published. Rank 0 looks which checkpoints there are: on a shared disk not
    every machine sees them at once, and every rank must take the same branch."""
    found = log.last_within(checkpoint.steps(checkpoints)) if collective.world.rank == 0 else None
    last = int(collective.broadcast([NONE if found is None else found])[0])
    return None if last == NONE else last


def verdict(log: CanaryLog, step: int, last: int | None) -> LastStep | Earlier | NoStep:
    """After the last step, `step`, when every reading is whole; `last`: as `last_within` says."""
    if last == step:
        return LastStep()
    if last is None:
        newest = log.newest
        told = "" if newest is None else f" The last, at step {newest.step}, is {newest.standing}."
        message = (
            f"no checkpoint's answers to the canary prompts are within their limits.{told} The model is kept"
            " as an artifact but is not published"
        )
        return NoStep(OutcomeError(code="canary_gate", message=message))
    return Earlier(
        step=last,
        message=f"the canaries at the last step, {step}, are not within their limits: the model that is"
        f" published is the checkpoint of step {last}, the last that was",
    )
