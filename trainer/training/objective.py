"""The module that the engine wraps: policy, reference and loss in one forward.

The loss must be inside the engine's forward: under ZeRO-3 a head that is used outside it is not
gathered, and the run crashes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.training.data import Batch
from trainer.training.losses import ExampleLosses, example_losses, objective


@dataclass(frozen=True)
class NoReference:
    """beta is 0 throughout: no KL is computed."""


@dataclass(frozen=True)
class AdaptersOff:
    """The policy itself with its LoRA adapters switched off. Costs no memory."""


@dataclass(frozen=True)
class FrozenCopy:
    """A second model, frozen."""

    model: nn.Module


Reference = NoReference | AdaptersOff | FrozenCopy


class SafeObjective(nn.Module):
    """Policy and reference over one batch -> the loss and each example's NLL and KL."""

    def __init__(self, policy: nn.Module, reference: Reference) -> None:
        super().__init__()
        self.policy = policy
        # A submodule, so that ZeRO-3 partitions a frozen copy as it does the policy.
        self.reference = reference.model if isinstance(reference, FrozenCopy) else None
        self.kind = reference

    def forward(self, batch: Batch, beta_B: Tensor) -> tuple[Tensor, ExampleLosses]:
        """Returns the *sum* over the batch's examples, and the detached values an example."""
        ref_logits_NV = None
        if not isinstance(self.kind, NoReference):
            with torch.no_grad(), self._speaking_as_reference() as model:
                ref_logits_NV = _answer_logits(model, batch)
        losses = example_losses(
            _answer_logits(self.policy, batch), batch.label_N, batch.example_N, batch.count_B, ref_logits_NV
        )
        seen = ExampleLosses(losses.nll_B.detach(), None if losses.kl_B is None else losses.kl_B.detach())
        return objective(losses, beta_B), seen

    @contextmanager
    def _speaking_as_reference(self) -> Iterator[Any]:
        if self.reference is not None:
            self.reference.eval()
            yield self.reference
            return
        policy: Any = self.policy
        training = policy.training
        # Dropout would make the reference disagree with itself from one step to the next.
        policy.eval()
        try:
            with policy.disable_adapter():
                yield policy
        finally:
            policy.train(training)


def _answer_logits(model: Any, batch: Batch) -> Tensor:
    """Logits [N, V] at the positions that predict answer tokens."""
    logits_BTV = model(input_ids=batch.ids_BT, attention_mask=batch.attention_BT, use_cache=False).logits
    logits_NV: Tensor = logits_BTV.flatten(0, 1).index_select(0, batch.answer_at_N)
    return logits_NV
