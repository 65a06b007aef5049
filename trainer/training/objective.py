"""The module that the engine wraps: policy, reference and loss in one forward.

The loss must be inside the engine's forward: under ZeRO-3 a head that is used outside it is not
gathered, and the run crashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trainer.probe.features import Pooling, prompt_features
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


@dataclass(frozen=True)
class Features:
    """What is read of the reference at a prompt."""

    layers: tuple[int, ...]
    """Indices into the hidden states: 0 the embeddings', l the output of block l."""
    pooling: Pooling


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
        weight_B = 1.0 if batch.weight_B is None else batch.weight_B
        targets = SoftTargets(
            label_N=batch.label_N,
            nll_weight_N=(weight_B * alpha_B / batch.count_B)[batch.example_N],
            kl_weight_N=(weight_B * beta_B / batch.count_B)[batch.example_N] if with_reference else None,
        )
        losses = self.from_hidden(hidden_NH, targets, ref_hidden_NH)
        nll_B = mean_by_example(losses.nll_N, batch.example_N, batch.count_B)
        kl_B = None
        if losses.kl_N is not None:
            kl_B = mean_by_example(losses.kl_N, batch.example_N, batch.count_B)
        return losses.loss, ExampleLosses(nll_B, kl_B)

    @torch.no_grad()
    def look(self, batch: Batch, features: Features | None) -> tuple[Batch, Tensor | None]:
        """The one forward of the reference, taken ahead of `forward`: the batch with what the reference has
        at its answer tokens, and [B, L, H] at its prompts where `features` are asked for: NaN throughout, if
        a state is not finite.

        With cached states the policy is asked: that is right only while it still is the reference.

        Raises:
            DataError: an example has no prompt.
        """
        with self._speaking_as_reference() as model:
            if self.from_hidden is None:
                logits_BTV, states = _forward_with_states(model, batch, features)
                ahead = replace(batch, ref_logits_NV=_at_answers(logits_BTV, batch))
            else:
                last_BTH, states = _decode_with_states(model, batch, features)
                ahead = replace(batch, ref_hidden_NH=_at_answers(last_BTH, batch))
        if features is None:
            return ahead, None
        read_BLH = prompt_features(
            states,
            batch.attention_BT,
            batch.prompt_end_B,
            features.pooling,
            layers=features.layers,
            # A rank that raised alone would leave the others waiting: whoever gathers them looks.
            finite=False,
        )
        return ahead, read_BLH

    def _reference_hidden(self, batch: Batch) -> Tensor:
        if batch.ref_hidden_NH is not None:
            return batch.ref_hidden_NH
        if isinstance(self.kind, CachedStates):
            raise ValueError("the batch brings no hidden states of the reference")
        with torch.no_grad(), self._speaking_as_reference() as model:
            return answer_hidden(model, batch)

    def _from_logits(
        self, batch: Batch, beta_B: Tensor, with_reference: bool
    ) -> tuple[Tensor, ExampleLosses]:
        ref_logits_NV = batch.ref_logits_NV if with_reference else None
        if with_reference and ref_logits_NV is None:
            with torch.no_grad(), self._speaking_as_reference() as model:
                ref_logits_NV = _answer_logits(model, batch)
        losses = example_losses(
            _answer_logits(self.policy, batch), batch.label_N, batch.example_N, batch.count_B, ref_logits_NV
        )
        seen = ExampleLosses(losses.nll_B.detach(), None if losses.kl_B is None else losses.kl_B.detach())
        return objective(losses, beta_B, batch.weight_B), seen

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
            # Without adapters to switch off it is asked while it still is the reference.
            with policy.disable_adapter() if isinstance(self.kind, AdaptersOff) else nullcontext():
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
    return _at_answers(_decode_with_states(model, batch, None)[0], batch)


def _answer_logits(model: Any, batch: Batch) -> Tensor:
    """Logits [N, V] at the positions that predict answer tokens."""
    return _at_answers(_forward_with_states(model, batch, None)[0], batch)


def _at_answers(values_BTX: Tensor, batch: Batch) -> Tensor:
    return values_BTX.flatten(0, 1).index_select(0, batch.answer_at_N)


def _decode_with_states(
    model: Any, batch: Batch, features: Features | None
) -> tuple[Tensor, Sequence[Tensor]]:
    """Last hidden states [B, T, H], and those of every layer where features are asked for."""
    asked = {} if features is None else {"output_hidden_states": True}
    out = model.get_decoder()(
        input_ids=batch.ids_BT, attention_mask=batch.attention_BT, use_cache=False, **asked
    )
    return out.last_hidden_state, out.hidden_states if asked else ()


def _forward_with_states(
    model: Any, batch: Batch, features: Features | None
) -> tuple[Tensor, Sequence[Tensor]]:
    """Logits [B, T, V], and the hidden states of every layer where features are asked for."""
    asked = {} if features is None else {"output_hidden_states": True}
    out = model(input_ids=batch.ids_BT, attention_mask=batch.attention_BT, use_cache=False, **asked)
    return out.logits, out.hidden_states if asked else ()


def _reference_head(reference: Reference) -> nn.Parameter | None:
    match reference:
        case FrozenCopy(model):
            weight: nn.Parameter = model.get_output_embeddings().weight  # type: ignore[operator]
            return weight
        case CachedStates(head_VH):
            return head_VH
        case _:
            return None
