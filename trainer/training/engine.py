"""DeepSpeed, and the only file that imports it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    # Before the import: without a GPU DeepSpeed would look for one, and for a compiler.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch.distributed as dist
from torch import Tensor, nn

from shared.errors import ConfigError, TrainingError
from shared.training import Training
from trainer.training.data import Batch
from trainer.training.distributed import World
from trainer.training.losses import ExampleLosses
from trainer.training.objective import Features, SafeObjective
from trainer.training.order import micro_batch_size

ENGINE_STATE = "engine"
"""Folder of DeepSpeed's files inside a checkpoint."""


def init_distributed(world: World) -> None:
    """Joins the ranks. Gradients go over NCCL on GPUs and gloo on CPUs."""
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    for name, value in (("RANK", world.rank), ("WORLD_SIZE", world.ranks), ("LOCAL_RANK", world.local_rank)):
        os.environ.setdefault(name, str(value))
    # A shared-memory all-reduce for CPU ranks, which DeepSpeed would compile at the first start: half a
    # minute, and a compiler that a user may not have.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0" if world.ranks == 1 else "29500")
    deepspeed.init_distributed(
        dist_backend="nccl" if world.device.type == "cuda" else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
    )


LIVE_PARAMETERS = "TETHER_ZERO3_LIVE_PARAMETERS"
"""Environment variable: how many parameters a rank may keep gathered under ZeRO-3. The operator's, since
it trades the device's memory for traffic; 0 gives each layer back as soon as it was used."""


def engine_config(
    training: Training, ranks: int, dtype: torch.dtype, environment: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """DeepSpeed's settings. Clipping and averaging are its own; the learning rate is set by us."""
    micro = micro_batch_size(training, ranks)
    accumulation = training.batch_size // ranks // micro
    config: dict[str, Any] = {
        "train_batch_size": training.batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": training.max_grad_norm,
        "bf16": {"enabled": dtype is torch.bfloat16},
        "zero_optimization": _zero_config(training, environment),
        "zero_allow_untested_optimizer": True,
        # The optimizer is torch's, below.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    if dtype is torch.bfloat16 and accumulation > 1 and training.zero_stage > 0:
        # Small gradients vanish in a sum of 8 bits. Without ZeRO, DeepSpeed can sum in bf16 alone.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _zero_config(training: Training, environment: Mapping[str, str]) -> dict[str, Any]:
    config: dict[str, Any] = {"stage": training.zero_stage}
    if training.offload != "none":
        # The parameters' offload without the optimizer's would keep the larger part on the device.
        config["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if training.offload == "parameters":
        config["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if training.zero_stage < 3:
        return config
    config["stage3_gather_16bit_weights_on_model_save"] = True
    if (told := environment.get(LIVE_PARAMETERS)) is not None:
        if not told.isdecimal():
            raise ConfigError(f"{LIVE_PARAMETERS} is {told!r}; it must be a number of parameters, such as 0")
        config["stage3_max_live_parameters"] = int(told)
        config["stage3_max_reuse_distance"] = int(told)
        config["stage3_param_persistence_threshold"] = min(int(told), 100_000)
    return config


def make_optimizer(training: Training, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """torch's own, which needs no compiler where it is installed, and runs where the state lies."""
    match training.optimizer:
        case "adamw":
            return torch.optim.AdamW(
                parameters, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
            )
        case "sgd":
            return torch.optim.SGD(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)


class Engine:
    """One rank's part of the sharded policy: trains a step, saves, restores."""

    def __init__(
        self, objective: SafeObjective, training: Training, world: World, dtype: torch.dtype
    ) -> None:
        self.world = world
        self.training = training
        config = engine_config(training, world.ranks, dtype)
        self.accumulation: int = config["gradient_accumulation_steps"]
        trainable = [p for p in objective.parameters() if p.requires_grad]
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=objective, optimizer=make_optimizer(training, trainable), config=config
        )
        if dtype is torch.bfloat16 and training.zero_stage == 0:
            # DeepSpeed has taken a step with gradients of 0 to make the state, and AdamW's correction of
            # its young averages would count it.
            self._optimizer.optimizer.state.clear()

    @property
    def objective(self) -> SafeObjective:
        """For generation: calling its parts gathers what ZeRO-3 has scattered."""
        module: SafeObjective = self._engine.module
        return module

    def train_step(
        self, micro_batches: Sequence[tuple[Batch, Tensor]], learning_rate: float
    ) -> tuple[float, list[ExampleLosses]]:
        """One optimizer step over this rank's (batch, beta_B) pairs, one a micro-batch.

        Returns this rank's part of the step's loss, and each micro-batch's values an example.

        Raises:
            TrainingError: the loss is not finite (on every rank, or the others would hang).
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.train()
        total = 0.0
        seen = []
        # DeepSpeed divides by the accumulation steps and averages over ranks. Both factors undo
        # that, so that each example weighs 1 / global batch, whoever holds it.
        scale = self.world.ranks * self.accumulation / self.training.batch_size
        for batch, beta_B in micro_batches:
            loss_sum, losses = self._engine(batch.to(self.world.device), beta_B.to(self.world.device))
            self._engine.backward(loss_sum * scale)
            self._engine.step()
            total += float(loss_sum.detach()) / self.training.batch_size
            seen.append(losses)
        self._agree_finite(total)
        return total, seen

    def look(self, batches: Sequence[Batch], features: Features | None) -> list[tuple[Batch, Tensor | None]]:
        """The reference's forward of a step's micro-batches, ahead of `train_step`: see `SafeObjective.look`.
        Every rank must bring equally many."""
        return [self.objective.look(batch.to(self.world.device), features) for batch in batches]

    @torch.no_grad()
    def weighted_nll(self, batches: Sequence[Batch], weights: Sequence[Sequence[float]]) -> float:
        """Weighted sum of the examples' mean NLL over this rank's batches. Every rank must bring
        equally many."""
        self._engine.eval()
        total = 0.0
        for batch, weight in zip(batches, weights, strict=True):
            on_device = batch.to(self.world.device)
            weight_B = torch.tensor(weight, device=self.world.device)
            _, losses = self._engine(on_device, torch.zeros_like(weight_B), with_reference=False)
            total += float((losses.nll_B * weight_B).sum())
        return total

    def _agree_finite(self, total: float) -> None:
        bad = torch.tensor(float(not torch.isfinite(torch.tensor(total))), device=self.world.device)
        dist.all_reduce(bad)
        if bad > 0:
            raise TrainingError(
                f"the loss is not finite ({total} on rank {self.world.rank}); lower"
                " training.learning_rate, or train in fp32"
            )

    def policy_weights(self) -> dict[str, Tensor] | None:
        """The policy's weights, whole, on rank 0; None on the others. Every rank must call it.

        For LoRA the adapters alone.
        """
        if self.training.zero_stage == 3:
            state = self._engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=True)
        else:
            state = self._engine.module_state_dict(exclude_frozen_parameters=True)
        if self.world.rank != 0:
            return None
        prefix = "policy."
        return {
            name[len(prefix) :]: tensor.detach().cpu().clone()
            for name, tensor in state.items()
            if name.startswith(prefix)
        }

    @property
    def checkpoint_bytes(self) -> int:
        """About what a checkpoint takes, of all ranks together: the weights that train, twice (for the
        engine, and as a model), and the optimizer's float32 copy and state of them."""
        state = {"adamw": 8, "sgd": 0}[self.training.optimizer]
        return sum(
            int(getattr(p, "ds_numel", p.numel())) * (2 * p.element_size() + 4 + state)
            for p in self._engine.module.parameters()
            if p.requires_grad
        )

    def save(self, directory: Path) -> None:
        """Optimizer and weights of all ranks. Frozen weights are not written: they are the base's."""
        self._engine.save_checkpoint(
            str(directory), tag=ENGINE_STATE, save_latest=False, exclude_frozen_parameters=True
        )

    def load(self, directory: Path) -> None:
        """Raises TrainingError where the checkpoint was made by another number of ranks."""
        path, _ = self._engine.load_checkpoint(str(directory), tag=ENGINE_STATE, load_module_strict=False)
        if path is None:
            raise TrainingError(
                f"the checkpoint {directory} could not be loaded with {self.world.ranks} ranks at ZeRO stage"
                f" {self.training.zero_stage}; resume with the ranks and the stage it was saved with"
            )


def shutdown() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
