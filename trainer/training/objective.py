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
from trainer.training.losses import ExampleLosses, example_losses, mean_by_example, objective
from trainer.training.soft_target import SoftTargetLoss, SoftTargets


@dataclass(frozen=True)
class NoReference:
    """beta is 0 throughout: no KL is computed."""


@dataclass(frozen=True)
class AdaptersOff:
    """The policy itself with its LoRA adapters switched off. Costs no memory, and a forward a step."""


@dataclass(frozen=True)
class FrozenCopy:
    """A second model, frozen. Costs its memory, and a forward a step."""

    model: nn.Module


@dataclass(frozen=True)
class CachedStates:
    """The reference's last hidden states come with the batch (`reference.py`); only its head is here."""

    head_VH: nn.Parameter | None
    """A frozen copy; None where the policy's own head is frozen too."""


Reference = NoReference | AdaptersOff | FrozenCopy | CachedStates


class SafeObjective(nn.Module):
    """Policy and reference over one batch -> the loss and each example's NLL and KL."""

    def __init__(self, policy: nn.Module, reference: Reference, head: nn.Linear | None) -> None:
        """`head`: the policy's output matrix; None where its logits are more than a product with it
        (a bias, a cap, adapters on it), and the loss then takes whole logits."""
        super().__init__()
        self.policy = policy
        # A submodule, so that ZeRO-3 partitions a frozen copy as it does the policy.
        self.reference = reference.model if isinstance(reference, FrozenCopy) else None
        self.kind = reference
        self.hidden_size = None if head is None else int(head.weight.shape[1])
        self.from_hidden = None
        if head is not None:
            weight: Any = head.weight
            self.from_hidden = SoftTargetLoss(weight, _reference_head(reference))

    def forward(
        self, batch: Batch, beta_B: Tensor, *, with_reference: bool = True
    ) -> tuple[Tensor, ExampleLosses]:
        """Returns the *sum* over the batch's examples, and the detached values an example.

        Without the reference no KL is computed, and beta counts for nothing.
        """
        if isinstance(self.kind, NoReference):
            with_reference = False
        if self.from_hidden is None:
            return self._from_logits(batch, beta_B, with_reference)
        ref_hidden_NH = self._reference_hidden(batch) if with_reference else None
        hidden_NH = answer_hidden(self.policy, batch)
        alpha_B = 1 - beta_B if with_reference else torch.ones_like(beta_B)
        targets = SoftTargets(
            label_N=batch.label_N,
            nll_weight_N=(alpha_B / batch.count_B)[batch.example_N],
            kl_weight_N=(beta_B / batch.count_B)[batch.example_N] if with_reference else None,
        )
        losses = self.from_hidden(hidden_NH, targets, ref_hidden_NH)
        nll_B = mean_by_example(losses.nll_N, batch.example_N, batch.count_B)
        kl_B = None
        if losses.kl_N is not None:
            kl_B = mean_by_example(losses.kl_N, batch.example_N, batch.count_B)
        return losses.loss, ExampleLosses(nll_B, kl_B)

    @torch.no_grad()
    def reference_hidden(self, batch: Batch) -> Tensor:
        """[N, H]: what the policy, while it is still the reference, has at the answer positions."""
        return answer_hidden(self.policy, batch)

    def _reference_hidden(self, batch: Batch) -> Tensor:
        if isinstance(self.kind, CachedStates):
            if batch.ref_hidden_NH is None:
                raise ValueError("the batch brings no hidden states of the reference")
            return batch.ref_hidden_NH
        with torch.no_grad(), self._speaking_as_reference() as model:
            return answer_hidden(model, batch)

    def _from_logits(
        self, batch: Batch, beta_B: Tensor, with_reference: bool
    ) -> tuple[Tensor, ExampleLosses]:
        ref_logits_NV = None
        if with_reference:
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


def plain_head(model: Any) -> nn.Linear | None:
    """The output matrix of `model`, if its logits are the last hidden states times it and no more.

    Tried on a few tokens, since what a model does to its logits (a cap, a scale) is not written in one
    place. To be asked before ZeRO scatters the weights.
    """
    head: Any = model.get_output_embeddings()
    if type(head) is not nn.Linear or getattr(head, "bias", None) is not None:
        return None
    ids_BT = torch.arange(4, device=head.weight.device)[None]
    training = model.training
    model.eval()
    with torch.no_grad():
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
        hidden_BTH = model.get_decoder()(input_ids=ids_BT, use_cache=False).last_hidden_state
        same = torch.allclose(head(hidden_BTH), logits_BTV, rtol=1e-3, atol=1e-3)
    model.train(training)
    return head if same else None


def answer_hidden(model: Any, batch: Batch) -> Tensor:
    """Last hidden states [N, H] at the positions that predict answer tokens."""
    out = model.get_decoder()(input_ids=batch.ids_BT, attention_mask=batch.attention_BT, use_cache=False)
    hidden_NH: Tensor = out.last_hidden_state.flatten(0, 1).index_select(0, batch.answer_at_N)
    return hidden_NH


def _answer_logits(model: Any, batch: Batch) -> Tensor:
    """Logits [N, V] at the positions that predict answer tokens."""
    logits_BTV = model(input_ids=batch.ids_BT, attention_mask=batch.attention_BT, use_cache=False).logits
    logits_NV: Tensor = logits_BTV.flatten(0, 1).index_select(0, batch.answer_at_N)
    return logits_NV


def _reference_head(reference: Reference) -> nn.Parameter | None:
    match reference:
        case FrozenCopy(model):
            weight: nn.Parameter = model.get_output_embeddings().weight  # type: ignore[operator]
            return weight
        case CachedStates(head_VH):
            return head_VH
        case _:
            return None
