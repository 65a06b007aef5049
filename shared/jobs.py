"""What a fine-tuning job may ask for and what the service says of it.

OpenAI's fine-tuning shapes, with two objects of our own beside the standard fields: `safety` (what
guards the run) and `training` (how it trains). Both may be left out; safety is then on.
The keys are frozen: tests/structure/test_config_keys.py holds the reviewed list.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _named(value: object) -> object:
    """`"sft"` is short for `{"type": "sft"}`."""
    return {"type": value} if isinstance(value, str) else value


# --- safety: what guards the run ---------------------------------------------------------------


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
    BeforeValidator(_named),
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

Method = Annotated[Annotated[Sft | FixedKl | Adaptive, Field(discriminator="type")], BeforeValidator(_named)]


class Safety(Settings):
    method: Method = Adaptive()


# --- training: how it trains -------------------------------------------------------------------


class Full(Settings):
    """Every weight trains; the reference is a frozen copy."""

    type: Literal["full"] = "full"


class Lora(Settings):
    """Low-rank adapters; the reference is the same model with them switched off."""

    type: Literal["lora"] = "lora"
    r: int = Field(default=16, ge=1, le=1024)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = None
    """Module names; None: those the base is registered with."""
    load_in_4bit: bool = False
    """The frozen base in 4-bit NormalFloat (QLoRA, arXiv 2305.14314), policy and reference alike; ZeRO 0
    to 2, and bitsandbytes must be installed."""


Adapter = Annotated[Annotated[Full | Lora, Field(discriminator="type")], BeforeValidator(_named)]


class Training(Settings):
    """A field that is left out takes the base's registered default, then the one given here."""

    adapter: Adapter = Lora()
    ranks: int | None = Field(default=None, ge=1, le=1024)
    """Processes over all nodes; None: one a GPU, or one a node without."""
    nnodes: int = Field(default=1, ge=1, le=1024)
    """Machines, with equally many ranks each; they share the directory of runs."""
    zero_stage: int = Field(default=2, ge=0, le=3)
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What lies in the host's memory and not the device's. `optimizer`: its state and step (ZeRO 1 to 3);
    `parameters`: the weights too (ZeRO 3)."""
    activation_checkpointing: bool = False
    """Compute a layer's activations again in the backward pass: less memory, about a third more time."""
    reference: Literal["auto", "adapters_off", "frozen_copy", "cache"] = "auto"
    """Who speaks for the reference. `adapters_off` (LoRA alone): the policy without its adapters.
    `frozen_copy`: a second model. `cache`: its last hidden states, computed once and kept on disk for
    the run. `auto`: adapters_off with LoRA, else frozen_copy."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 on a GPU, else fp32."""
    batch_size: int = Field(default=16, ge=1, le=65536)
    """Examples an optimizer step, over all ranks."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=65536)
    """Examples a rank takes at once; None: its whole share of the batch."""
    group_by_length: bool = False
    """Batches of rows of like length, so that less is padding; which rows an epoch holds stays."""
    steps: int | None = Field(default=None, ge=1, le=10_000_000)
    """Optimizer steps; None: what `n_epochs` comes to."""
    n_epochs: int = Field(default=3, ge=1, le=1000)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=2e-4, gt=0, le=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_length: int | None = Field(default=None, ge=8)
    """Tokens of a row; None: the base's context."""
    too_long: Literal["truncate", "refuse"] = "truncate"
    """A row beyond max_length: cut at the end of its answer and reported, or the job fails."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Steps between checkpoints. The end of the run is one too."""
    keep_checkpoints: int = Field(default=2, ge=1, le=100)
    max_restarts: int = Field(default=1, ge=0, le=100)
    """Times that a run whose rank died starts again from its last checkpoint."""

    @model_validator(mode="after")
    def _fits_together(self) -> Training:
        if self.reference == "adapters_off" and not isinstance(self.adapter, Lora):
            raise ValueError("reference 'adapters_off' needs adapter 'lora'; use 'frozen_copy' or 'cache'")
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("offload 'optimizer' needs zero_stage 1, 2 or 3; it is 0")
        if self.offload == "parameters" and self.zero_stage != 3:
            raise ValueError(f"offload 'parameters' needs zero_stage 3; it is {self.zero_stage}")
        if isinstance(self.adapter, Lora) and self.adapter.load_in_4bit and self.zero_stage == 3:
            raise ValueError(
                "adapter.load_in_4bit needs zero_stage 0, 1 or 2: ZeRO 3 cannot split 4-bit weights"
            )
        if self.nnodes > 1 and self.reference == "cache":
            raise ValueError(
                "reference 'cache' is a file that the ranks of one machine map: it needs nnodes 1"
            )
        if self.ranks is not None and self.ranks % self.nnodes:
            raise ValueError(f"ranks {self.ranks} do not divide over nnodes {self.nnodes}")
        return self

    @property
    def reference_kind(self) -> Literal["adapters_off", "frozen_copy", "cache"]:
        if self.reference != "auto":
            return self.reference
        return "adapters_off" if isinstance(self.adapter, Lora) else "frozen_copy"

    @property
    def reference_speaks(self) -> bool:
        """Whether the reference can be asked prompts that are not in the training file."""
        return self.reference_kind != "cache" or isinstance(self.adapter, Lora)


# --- OpenAI's shapes ---------------------------------------------------------------------------


class Hyperparameters(Settings):
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=65536)] = "auto"
    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=1000)] = "auto"
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0, le=1000)] = "auto"


class SupervisedMethod(Settings):
    hyperparameters: Hyperparameters = Hyperparameters()


class OpenAIMethod(Settings):
    """Of OpenAI's methods we offer the supervised one."""

    type: Literal["supervised"] = "supervised"
    supervised: SupervisedMethod = SupervisedMethod()


class CreateJob(Settings):
    model: str = Field(min_length=1, max_length=256)
    training_file: str = Field(min_length=1, max_length=256)
    validation_file: str | None = None
    method: OpenAIMethod | None = None
    hyperparameters: Hyperparameters = Hyperparameters()
    """OpenAI's older place for them; `method.supervised.hyperparameters` wins where both are given."""
    suffix: str | None = Field(default=None, min_length=1, max_length=64)
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    integrations: None = None
    safety: Safety = Safety()
    training: Training = Training()

    @model_validator(mode="after")
    def _metadata_fits(self) -> CreateJob:
        for key, value in (self.metadata or {}).items():
            if len(key) > 64 or len(value) > 512:
                raise ValueError(f"metadata[{key[:64]!r}]: keys hold 64 characters, values 512")
        return self


class JobStatus(StrEnum):
    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})


class SafetyState(StrEnum):
    """OpenAI's client has no `paused`: such a job is `queued` with this beside it."""

    ACTIVE = "active"
    PAUSED = "paused"


class JobError(BaseModel):
    code: str
    message: str
    param: str | None = None


class JobProgress(BaseModel):
    step: int
    steps: int


class JobSafety(BaseModel):
    """What guards the job, and how it stands."""

    state: SafetyState = SafetyState.ACTIVE
    reason: str | None = None
    method: dict[str, Any]


class Job(BaseModel):
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None = None
    estimated_finish: int | None = None
    model: str
    fine_tuned_model: str | None = None
    organization_id: str = "tether"
    status: JobStatus
    hyperparameters: Hyperparameters
    method: OpenAIMethod
    training_file: str
    validation_file: str | None = None
    result_files: list[str] = []
    trained_tokens: int | None = None
    seed: int
    metadata: dict[str, str] | None = None
    integrations: None = None
    error: JobError | None = None
    suffix: str | None = None
    safety: JobSafety
    training: Training
    progress: JobProgress | None = None


class JobEvent(BaseModel):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"] = "message"
    data: dict[str, Any] | None = None


class JobCheckpoint(BaseModel):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, float]


class File(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["fine-tune", "fine-tune-results"]
    status: Literal["processed", "uploaded", "error"] = "processed"
    expires_at: int | None = None
    status_details: str | None = None
