"""NLL and KL from hidden states, in chunks of tokens, with a backward of its own.

For one token with label y, `alpha * NLL + beta * KL(ref || policy)` is, up to a constant, the
cross-entropy against the soft target `q = alpha * onehot(y) + beta * ref`; its gradient by the logits
is `(alpha + beta) * p - q`. So one pass over chunks of tokens gives the loss and its gradient, and no
tensor of [tokens, vocabulary] is ever whole.

Shapes: N answer tokens, H hidden, V vocabulary, C tokens of a chunk, R of a tile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**27}
"""Logits of one matrix product: enough tokens that reading the head's matrix is not what takes time."""

TILE_ELEMENTS = {"cpu": 2**18, "cuda": 2**27}
"""Logits that the dozen passes between the products go over together: on a CPU what its caches hold."""


class SoftTargets(NamedTuple):
    """What the policy's answer tokens are trained towards."""

    label_N: Tensor
    nll_weight_N: Tensor
    kl_weight_N: Tensor | None
    """None: no reference, no KL."""


class TokenLosses(NamedTuple):
    loss: Tensor
    """`sum_n nll_weight_n * NLL_n + kl_weight_n * KL_n`; carries the gradient."""
    nll_N: Tensor
    kl_N: Tensor | None
    """Both in nats, float32, without a gradient."""


class SoftTargetLoss(nn.Module):
    """The heads of policy and reference, and the loss of what goes through them.

    It holds the head's matrix itself (the same Parameter as the model's), so that ZeRO-3, which gathers
    a module's own parameters for its forward and its backward, has it whole here.
    """

    def __init__(self, weight_VH: nn.Parameter, ref_weight_VH: nn.Parameter | None) -> None:
        """`ref_weight_VH`: the reference's head; None where it is the policy's own (frozen) one."""
        super().__init__()
        self.weight = weight_VH
        self.ref_weight = ref_weight_VH

    def forward(self, hidden_NH: Tensor, targets: SoftTargets, ref_hidden_NH: Tensor | None) -> TokenLosses:
        kl_weight_N = targets.kl_weight_N
        if (ref_hidden_NH is None) != (kl_weight_N is None):
            raise ValueError("a KL needs both its weights and the reference's hidden states")
        ref_weight_VH = self.weight if self.ref_weight is None else self.ref_weight
        loss, nll_N, kl_N = _SoftTarget.apply(  # type: ignore[no-untyped-call]
            hidden_NH,
            self.weight,
            targets.label_N,
            targets.nll_weight_N,
            kl_weight_N,
            ref_hidden_NH,
            ref_weight_VH.detach(),
        )
        return TokenLosses(loss, nll_N, kl_N if kl_weight_N is not None else None)

    def _save_to_state_dict(self, *_: Any, **__: Any) -> None:
        """Nothing: the policy's head stands in the policy's state, the reference's is the base's."""

    def _load_from_state_dict(self, *_: Any, **__: Any) -> None:
        """Nothing, for the same reason."""


class _SoftTarget(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        label_N: Tensor,
        nll_weight_N: Tensor,
        kl_weight_N: Tensor | None,
        ref_hidden_NH: Tensor | None,
        ref_weight_VH: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        tokens, vocabulary = hidden_NH.shape[0], weight_VH.shape[0]
        nll_N = torch.empty(tokens, dtype=torch.float32, device=hidden_NH.device)
        kl_N = torch.zeros_like(nll_N)
        grad_hidden_NH = torch.empty_like(hidden_NH) if wants_hidden else None
        # Summed over chunks in float32: bf16 would drop what a late chunk adds.
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if wants_weight else None
        chunk = _rows(CHUNK_ELEMENTS, hidden_NH.device, vocabulary)
        tile = _rows(TILE_ELEMENTS, hidden_NH.device, vocabulary)
        held = (min(chunk, tokens), vocabulary)
        logits_CV = hidden_NH.new_empty(held)
        ref_logits_CV = None if ref_hidden_NH is None else ref_hidden_NH.new_empty(held)
        for start in range(0, tokens, chunk):
            end = min(start + chunk, tokens)
            grad_CV = torch.mm(hidden_NH[start:end], weight_VH.T, out=logits_CV[: end - start])
            if ref_hidden_NH is not None and ref_logits_CV is not None:
                torch.mm(ref_hidden_NH[start:end], ref_weight_VH.T, out=ref_logits_CV[: end - start])
            for at in range(start, end, tile):
                part, rows = slice(at, min(at + tile, end)), slice(at - start, min(at + tile, end) - start)
                _tile(
                    grad_CV[rows],
                    None if ref_logits_CV is None else ref_logits_CV[rows],
                    label_N[part, None],
                    nll_weight_N[part, None],
                    None if kl_weight_N is None else kl_weight_N[part, None],
                    nll_N[part],
                    kl_N[part],
                )
            if grad_hidden_NH is not None:
                torch.mm(grad_CV, weight_VH, out=grad_hidden_NH[start:end])
            if grad_weight_VH is not None:
                if hidden_NH.dtype is torch.float32:
                    grad_weight_VH.addmm_(grad_CV.T, hidden_NH[start:end])
                else:
                    grad_weight_VH.add_(grad_CV.T @ hidden_NH[start:end])
        loss = torch.dot(nll_weight_N.float(), nll_N)
        if kl_weight_N is not None:
            loss = loss + torch.dot(kl_weight_N.float(), kl_N)
        ctx.grad_hidden_NH = grad_hidden_NH
        ctx.grad_weight_VH = None if grad_weight_VH is None else grad_weight_VH.to(weight_VH.dtype)
        ctx.mark_non_differentiable(nll_N, kl_N)
        return loss, nll_N, kl_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden_NH, grad_weight_VH = ctx.grad_hidden_NH, ctx.grad_weight_VH
        if grad_hidden_NH is None and grad_weight_VH is None:
            raise RuntimeError("the loss has been taken backward already; its gradients are not kept")
        # In place and given up at once: a second copy of the head's gradient could be the largest
        # tensor of the step.
        ctx.grad_hidden_NH = ctx.grad_weight_VH = None
        for grad in (grad_hidden_NH, grad_weight_VH):
            if grad is not None:
                grad.mul_(grad_loss)
        return grad_hidden_NH, grad_weight_VH, None, None, None, None, None


def _rows(elements: dict[str, int], device: torch.device, vocabulary: int) -> int:
    return max(1, elements.get(device.type, 2**24) // vocabulary)


def _tile(
    logits_RV: Tensor,
    ref_logits_RV: Tensor | None,
    label_R1: Tensor,
    nll_weight_R1: Tensor,
    kl_weight_R1: Tensor | None,
    nll_R: Tensor,
    kl_R: Tensor,
) -> None:
    """The losses of R tokens into `nll_R` and `kl_R`, and their gradient by the logits over `logits_RV`.

    The gradient is `(alpha + beta) * p - alpha * onehot(label) - beta * ref`.
    """
    policy = _softmax(logits_RV)
    torch.sub(policy.log_sum_R1, policy.shifted_RV.gather(1, label_R1), out=nll_R[:, None])
    if ref_logits_RV is None or kl_weight_R1 is None:
        grad_RV = policy.exp_RV.mul_(nll_weight_R1 / policy.sum_R1)
    else:
        ref = _softmax(ref_logits_RV)
        ref_p_RV = ref.exp_RV.div_(ref.sum_R1)
        # log(ref / p), but for the two sums, which are the same for every token of the vocabulary.
        ratio_RV = ref.shifted_RV.sub_(policy.shifted_RV)
        torch.linalg.vecdot(ref_p_RV, ratio_RV, out=kl_R)
        kl_R += (policy.log_sum_R1 - ref.log_sum_R1).squeeze(1)
        grad_RV = policy.exp_RV.mul_((nll_weight_R1 + kl_weight_R1) / policy.sum_R1)
        grad_RV.addcmul_(ref_p_RV, kl_weight_R1, value=-1)
    logits_RV.copy_(grad_RV.scatter_add_(1, label_R1, -nll_weight_R1.to(grad_RV.dtype)))


class _Softmax(NamedTuple):
    """In float32 whatever the weights: a bf16 softmax loses the KL of nearly equal models. One `exp` a
    logit, the dearest of the passes over a tile."""

    shifted_RV: Tensor
    """Logits less the row's greatest; written over the logits where those are float32 already."""
    exp_RV: Tensor
    sum_R1: Tensor

    @property
    def log_sum_R1(self) -> Tensor:
        return self.sum_R1.log()


def _softmax(logits_RV: Tensor) -> _Softmax:
    logits_RV = logits_RV.float()
    shifted_RV = logits_RV.sub_(logits_RV.amax(dim=1, keepdim=True))
    exp_RV = shifted_RV.exp()
    return _Softmax(shifted_RV, exp_RV, exp_RV.sum(dim=1, keepdim=True))
