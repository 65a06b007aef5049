"""What a guide tells the loop, and who speaks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from shared.wire import ChatMessage
from trainer.safety.decision import Action
from trainer.safety.probe.trust import Standing
from trainer.safety.seen import Age


@dataclass(frozen=True)
class Guidance:
    """What a step does, the same on every rank. `betas` follow the step's rows."""

    action: Action
    betas: tuple[float, ...]
    stop: bool
    risk: float
    staleness: int | None
    overdue: bool
    wait_s: float
    generate_s: float
    bases: dict[str, int]
    samples: int = 0
    """Answers of the policy that this step had judged, over all ranks."""
    kept: tuple[bool, ...] | None = None
    """Which rows train; None: all."""
    age: Age = field(default_factory=Age)
    probe: Standing = field(default_factory=Standing)


def stopped() -> Guidance:
    """The run is asked to end before this step: nothing is decided, so a resumed run decides it once."""
    return Guidance(
        action=Action.TRAIN,
        betas=(),
        stop=True,
        risk=0.0,
        staleness=None,
        overdue=False,
        wait_s=0.0,
        generate_s=0.0,
        bases={},
    )


class Speaker(StrEnum):
    POLICY = "policy"  # as it stands
    REFERENCE = "reference"


class Sampler(Protocol):
    """Answers prompts. Every rank must call it equally often, each with its own prompts.

    A step waits for it (`generate_s`), and for nothing else of it: what a reading asks is declared before,
    and the answers' questions may reach the judge at any time until the reading's deadline. So a sampler off
    the critical path would be given the prompts at `JudgedBeta._ask_answers`, and hand in the questions when
    its copy of the policy has answered.
    """

    def sample(
        self, prompts: Sequence[Sequence[ChatMessage]], step: int, speaker: Speaker = Speaker.POLICY
    ) -> list[str]: ...
