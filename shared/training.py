"""How a run trains: the `training` object of a job.

The keys are frozen: tests/structure/test_config_keys.py holds the reviewed list.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from shared.settings import Settings, named


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


Adapter = Annotated[Annotated[Full | Lora, Field(discriminator="type")], BeforeValidator(named)]


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
