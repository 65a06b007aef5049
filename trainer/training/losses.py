"""The objective, as plain functions of tensors.

Shapes: B examples, T positions, V vocabulary, N answer tokens of all examples together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ExampleLosses(NamedTuple):
    """One value an example, each a mean over the example's answer tokens, in nats."""

    nll_B: Tensor
    kl_B: Tensor | None
    """KL(ref || policy); None where no reference was given."""


def token_losses(
    logits_NV: Tensor, labels_N: Tensor, ref_logits_NV: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """NLL of the labels and forward KL(ref || policy) over the full vocabulary, a value a token.

    In float32 whatever the logits' type: a bf16 log-softmax loses the KL of nearly equal models.
    """
    logp_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    nll_N = -logp_NV.gather(-1, labels_N[:, None]).squeeze(-1)
    if ref_logits_NV is None:
        return nll_N, None
    ref_logp_NV = torch.log_softmax(ref_logits_NV.float(), dim=-1)
    kl_N = (ref_logp_NV.exp() * (ref_logp_NV - logp_NV)).sum(-1)
    return nll_N, kl_N


def mean_by_example(value_N: Tensor, example_N: Tensor, count_B: Tensor) -> Tensor:
    """Mean of a token value over each example's answer tokens.

    Args:
        example_N: index into the batch of the example that the token belongs to.
        count_B: answer tokens of each example, at least 1.
    """
    sum_B = torch.zeros(count_B.shape, dtype=value_N.dtype, device=value_N.device)
    return sum_B.index_add(0, example_N, value_N) / count_B


def example_losses(
    logits_NV: Tensor, labels_N: Tensor, example_N: Tensor, count_B: Tensor, ref_logits_NV: Tensor | None
) -> ExampleLosses:
    nll_N, kl_N = token_losses(logits_NV, labels_N, ref_logits_NV)
    return ExampleLosses(
        nll_B=mean_by_example(nll_N, example_N, count_B),
        kl_B=None if kl_N is None else mean_by_example(kl_N, example_N, count_B),
    )


def objective(losses: ExampleLosses, beta_B: Tensor, weight_B: Tensor | None = None) -> Tensor:
    """`sum_i alpha_i * NLL_i + beta_i * KL(ref || policy)_i`, `alpha_i = 1 - beta_i` (arXiv 2602.17546).

    A sum, not a mean: the caller divides by the *global* number of examples, so that neither the
    number of ranks nor accumulation changes what an example weighs. `weight_B`: 1 each where absent.
    """
    loss_B = losses.nll_B
    if losses.kl_B is not None:
        loss_B = (1 - beta_B) * losses.nll_B + beta_B * losses.kl_B
    return (loss_B if weight_B is None else weight_B * loss_B).sum()
