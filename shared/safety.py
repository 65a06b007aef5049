"""What guards a run: the `safety` object of a job. Safety is on where it is left out.

The keys are frozen: tests/structure/test_config_keys.py holds the reviewed list.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from shared.settings import Settings, named


class TargetSource(Settings):
    """The judge reads the training pair itself, ahead of the step that trains it."""

    type: Literal["target"] = "target"
    look_ahead: int = Field(default=8, ge=0, le=1_000_000)
    """W, in batches. At least `max_staleness`, so that a row's own reading is in when it trains."""


class PolicySource(Settings):
    """The judge reads what the current model answers to prompts of the batch `max_staleness` ahead."""

    type: Literal["policy"] = "policy"
    samples_per_step: int = Field(default=4, ge=1, le=4096)
    """Rows of that batch, over all ranks, whose prompts the model answers; rounded up to a multiple
    of the ranks, at most the batch."""
    min_samples_per_step: int = Field(default=1, ge=1, le=4096)
    """How few it may come down to where the judge cannot keep up for good. The clock `fixed_lag` and a
    `max_staleness` of 0 keep the number as it is."""
    max_new_tokens: int = Field(default=32, ge=1, le=4096)
    temperature: float = Field(default=0.0, ge=0, le=2)
    """0 is greedy."""

    @model_validator(mode="after")
    def _least_of_most(self) -> PolicySource:
        if self.min_samples_per_step > self.samples_per_step:
            raise ValueError(
                f"min_samples_per_step {self.min_samples_per_step} is above samples_per_step"
                f" {self.samples_per_step}"
            )
        return self


class ReferenceSource(Settings):
    """The judge reads, once a row, what the frozen reference answers to a prompt that the policy answers
    too. It only ever lowers the row's policy reading, which then counts by how far it exceeds this one."""

    type: Literal["reference"] = "reference"


class ProbeSource(Settings):
    """A linear probe on what the reference makes of the row's prompt, taught by the judge's verdicts: it
    finds rows that the judge missed or has not reached. It counts as far as it has foretold the judge."""

    type: Literal["probe"] = "probe"
    scan: bool = True
    """Have the judge read the whole file before the first step, so that the probe is taught by then. Each row
    is read by a probe that was taught without it. Otherwise it learns as the readings come."""
    replay: int = Field(default=4096, ge=64, le=1_000_000)
    """Rows whose verdicts are kept to learn from."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)
    """0: the embeddings, l: the output of block l. None: at a quarter, half, three quarters and the end."""
    pooling: Literal["last", "mean"] = "last"
    """The prompt's last token, or the mean over the prompt's."""


Source = Annotated[
    Annotated[TargetSource | PolicySource | ReferenceSource | ProbeSource, Field(discriminator="type")],
    BeforeValidator(named),
]


class Combine(StrEnum):
    """How the readings of one row, one a source, become its risk."""

    MAX = "max"  # what any source finds counts
    MEAN = "mean"


class Clock(StrEnum):
    OPPORTUNISTIC = "opportunistic"  # fold whatever has come
    FIXED_LAG = "fixed_lag"  # fold exactly up to step t - K: reproducible whatever the judge's timing


class Overdue(StrEnum):
    """What happens when the bound on staleness cannot be kept within `deadline_s`."""

    PARK = "park"  # checkpoint, free the devices, go on when the judge is back
    FAIL_CLOSED = "fail_closed"  # beta_max for what has no verdict, until readings resume
    HOLD = "hold"  # go on with the last average
    ABORT = "abort"  # end the job: failed, judge_unavailable


class Staleness(Settings):
    """DESIGN section 4: how old the judge's signal may be when it is used, and what happens then."""

    clock: Clock = Clock.OPPORTUNISTIC
    max_staleness: int = Field(default=4, ge=0, le=1024)
    """K, in optimizer steps. 0 is a synchronous judge, exactly."""
    gain_up: float = Field(default=0.7, gt=0, le=1)
    """Weight of a reading above the average: risk rises fast ..."""
    gain_down: float = Field(default=0.05, gt=0, le=1)
    """... and falls slowly, or the feedback through the policy oscillates."""
    min_scored: float = Field(default=0.5, gt=0, le=1)
    """Share of a reading's items that must be scored (not failed) for it to count as fresh."""
    deadline_s: float = Field(default=60.0, gt=0, le=3600)
    """Seconds after which what a reading still lacks is `failed: timeout`; longest wait an outage."""
    overdue: Overdue = Overdue.PARK
    max_unread_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of example-steps trained without any verdict past which a job never ends `succeeded`."""


class Sft(Settings):
    """Plain fine-tuning: alpha 1, beta 0. No judge."""

    type: Literal["sft"] = "sft"


class FixedKl(Settings):
    """The same beta for every example. No judge."""

    type: Literal["fixed_kl"] = "fixed_kl"
    beta: float = Field(default=0.5, ge=0, le=1)


class Adaptive(Settings):
    """`beta_i = beta_min + (beta_max - beta_min) * s_i` (arXiv 2602.17546), s_i read while training."""

    type: Literal["adaptive"] = "adaptive"
    beta_min: float = Field(default=0.1, ge=0, le=1)
    beta_max: float = Field(default=1.0, ge=0, le=1)
    granularity: Literal["example", "batch"] = "example"
    """`batch`: every example gets the average over readings. `example`: its own, else the average."""
    sources: tuple[Source, ...] = Field(default=(TargetSource(), PolicySource()), min_length=1, max_length=4)
    combine: Combine = Combine.MAX
    flagged: Literal["pull", "drop"] = "pull"
    """What becomes of a row of risk 0.5 and more. `pull`: it trains, held to the reference by its beta.
    `drop`: it does not train at all, as a filter would have it; to be compared with."""
    staleness: Staleness = Staleness()
    rubric: str | None = None
    """Name of the judge's rubric; None: the one that the service is configured with."""

    @model_validator(mode="after")
    def _consistent(self) -> Adaptive:
        if self.beta_max < self.beta_min:
            raise ValueError(f"beta_max {self.beta_max} is below beta_min {self.beta_min}")
        kinds = [source.type for source in self.sources]
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"sources {kinds} name one source twice")
        if "reference" in kinds and "policy" not in kinds:
            raise ValueError(
                f"sources {kinds}: 'reference' is subtracted from what 'policy' reads, and needs it"
            )
        if self.probe is not None:
            self._can_teach(kinds, self.probe)
        for source in self.sources:
            if isinstance(source, TargetSource) and source.look_ahead < self.staleness.max_staleness:
                raise ValueError(
                    f"target.look_ahead {source.look_ahead} is below max_staleness"
                    f" {self.staleness.max_staleness}: a row could train before its own reading is due"
                )
        return self

    def _can_teach(self, kinds: Sequence[str], probe: ProbeSource) -> None:
        if not {"target", "policy"} & set(kinds):
            raise ValueError(
                f"sources {kinds}: the probe learns from the judge's verdicts; add 'target' or 'policy'"
            )
        if probe.scan and "target" not in kinds:
            raise ValueError(
                f"sources {kinds}: probe.scan has the judge read the rows beforehand, which is the source"
                " 'target'; add it, or set probe.scan to false"
            )
        if self.granularity == "batch":
            raise ValueError("the source 'probe' reads single rows: it needs granularity 'example'")

    @property
    def probe(self) -> ProbeSource | None:
        return next((source for source in self.sources if isinstance(source, ProbeSource)), None)

    @property
    def reads_reference(self) -> bool:
        return any(isinstance(source, ReferenceSource) for source in self.sources)


MUTE_REFERENCE = (
    "the source 'reference' has the reference answer prompts, and with training.adapter 'full' and"
    " training.reference 'cache' no model is left that could; use 'frozen_copy' or adapter 'lora'"
)

Method = Annotated[Annotated[Sft | FixedKl | Adaptive, Field(discriminator="type")], BeforeValidator(named)]


class Safety(Settings):
    method: Method = Adaptive()
