"""Which checkpoint of a run may be published, by what the canaries said of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.safety.canary import CanaryLog
from trainer.training import checkpoint
from trainer.training.run_spec import OutcomeError


@dataclass(frozen=True)
class LastStep:
    """The model as it stands at the end."""


@dataclass(frozen=True)
class Earlier:
    step: int
    model: Path
    """The model's folder in its checkpoint."""
    message: str


@dataclass(frozen=True)
class NoStep:
    error: OutcomeError


def verdict(log: CanaryLog, step: int, checkpoints: Path) -> LastStep | Earlier | NoStep:
    """After the last step, `step`, when every reading is whole. The same on every rank."""
    last = log.last_within(checkpoint.steps(checkpoints))
    if last == step:
        return LastStep()
    folder = None if last is None else checkpoint.of_step(checkpoints, last)
    if last is None or folder is None:
        newest = log.newest
        told = "" if newest is None else f" The last, at step {newest.step}, is {newest.standing}."
        message = (
            f"no checkpoint's answers to the canary prompts are within their limits.{told} The model is kept"
            " as an artifact but is not published"
        )
        return NoStep(OutcomeError(code="canary_gate", message=message))
    return Earlier(
        step=last,
        model=folder / checkpoint.MODEL,
        message=f"the canaries at the last step, {step}, are not within their limits: the model that is"
        f" published is the checkpoint of step {last}, the last that was",
    )
