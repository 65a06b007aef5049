"""The chunked loss against the plain formula and autograd."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from trainer.training import soft_target
from trainer.training.losses import token_losses
from trainer.training.soft_target import SoftTargetLoss, SoftTargets

TOKENS, HIDDEN, VOCABULARY = 37, 16, 301


class Problem:
    def __init__(self, *, dtype: torch.dtype = torch.float32, trainable_head: bool = True) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.hidden_NH = (2 * normal(TOKENS, HIDDEN)).to(dtype).requires_grad_()
        self.ref_hidden_NH = (self.hidden_NH.detach().float() + 0.3 * normal(TOKENS, HIDDEN)).to(dtype)
        self.head_VH = nn.Parameter(normal(VOCABULARY, HIDDEN).to(dtype), requires_grad=trainable_head)
        ref_head_VH = self.head_VH.detach().float() + 0.05 * normal(VOCABULARY, HIDDEN)
        self.ref_head_VH = nn.Parameter(ref_head_VH.to(dtype), requires_grad=False)
        self.label_N = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
        self.nll_weight_N = torch.rand(TOKENS, generator=generator)
        self.kl_weight_N = torch.rand(TOKENS, generator=generator)

    def plain(self, *, kl: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
        ref = self.ref_hidden_NH @ self.ref_head_VH.T if kl else None
        nll_N, kl_N = token_losses(self.hidden_NH @ self.head_VH.T, self.label_N, ref)
        loss = (self.nll_weight_N * nll_N).sum()
        return (loss if kl_N is None else loss + (self.kl_weight_N * kl_N).sum()), nll_N, kl_N

    def targets(self, *, kl: bool = True) -> SoftTargets:
        return SoftTargets(self.label_N, self.nll_weight_N, self.kl_weight_N if kl else None)

    def grads(self) -> list[Tensor]:
        """Takes them, so that the next backward begins anew."""
        found = [p.grad for p in (self.hidden_NH, self.head_VH) if p.grad is not None]
        self.hidden_NH.grad = self.head_VH.grad = None
        return found


@pytest.fixture(autouse=True, params=["one chunk", "many chunks and tiles"])
def _sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "one chunk":
        monkeypatch.setitem(soft_target.CHUNK_ELEMENTS, "cpu", 10 * VOCABULARY)
        monkeypatch.setitem(soft_target.TILE_ELEMENTS, "cpu", 3 * VOCABULARY)


@pytest.mark.parametrize(("kl", "trainable_head"), [*itertools.product([True, False], repeat=2)])
def test_values_and_gradients_are_the_plain_formula_s(kl: bool, trainable_head: bool) -> None:
    problem = Problem(trainable_head=trainable_head)
    loss, nll_N, kl_N = problem.plain(kl=kl)
    (3 * loss).backward()
    expected = problem.grads()
    module = SoftTargetLoss(problem.head_VH, problem.ref_head_VH)
    got = module(problem.hidden_NH, problem.targets(kl=kl), problem.ref_hidden_NH if kl else None)
    (3 * got.loss).backward()
    torch.testing.assert_close(got.nll_N, nll_N.detach(), atol=1e-5, rtol=0)
    assert (got.kl_N is None) is (not kl)
    if kl_N is not None:
        torch.testing.assert_close(got.kl_N, kl_N.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(got.loss, loss, atol=1e-4, rtol=1e-6)
    for mine, plain in zip(problem.grads(), expected, strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    """The loss computes in float32, so the step is coarse."""
    problem = Problem()
    module = SoftTargetLoss(problem.head_VH, problem.ref_head_VH)

    def loss() -> Tensor:
        value: Tensor = module(problem.hidden_NH, problem.targets(), problem.ref_hidden_NH).loss
        return value

    loss().backward()
    [grad_NH, grad_VH] = problem.grads()
    for tensor, grad in ((problem.hidden_NH, grad_NH), (problem.head_VH, grad_VH)):
        # Where the loss rises fastest, and most above its rounding.
        direction = grad / grad.norm()
        with torch.no_grad():
            tensor += 1e-2 * direction
            above = loss().item()
            tensor -= 2e-2 * direction
            below = loss().item()
            tensor += 1e-2 * direction
        assert (above - below) / 2e-2 == pytest.approx(float((grad * direction).sum()), rel=1e-2)


def test_bf16_is_as_near_as_bf16_weights_allow() -> None:
    """Against the plain formula over the same bf16 values taken in float32."""
    problem, exact = Problem(dtype=torch.bfloat16), Problem(dtype=torch.bfloat16)
    nll_N, kl_N = token_losses(
        exact.hidden_NH.float() @ exact.head_VH.float().T,
        exact.label_N,
        exact.ref_hidden_NH.float() @ exact.ref_head_VH.float().T,
    )
    assert kl_N is not None
    ((exact.nll_weight_N * nll_N).sum() + (exact.kl_weight_N * kl_N).sum()).backward()
    expected = exact.grads()
    module = SoftTargetLoss(problem.head_VH, problem.ref_head_VH)
    got = module(problem.hidden_NH, problem.targets(), problem.ref_hidden_NH)
    got.loss.backward()
    torch.testing.assert_close(got.nll_N, nll_N.detach(), atol=0.1, rtol=0.02)
    torch.testing.assert_close(got.kl_N, kl_N.detach(), atol=0.1, rtol=0.05)
    for mine, plain in zip(problem.grads(), expected, strict=True):
        assert mine.dtype is torch.bfloat16
        gap = (mine.float() - plain.float()).norm() / plain.float().norm()
        assert gap < 0.02


def test_without_gradients_none_are_computed() -> None:
    problem = Problem(trainable_head=False)
    module = SoftTargetLoss(problem.head_VH, None)
    with torch.no_grad():
        got = module(problem.hidden_NH, problem.targets(), problem.ref_hidden_NH)
    assert not got.loss.requires_grad


def test_a_second_backward_is_refused() -> None:
    problem = Problem()
    got = SoftTargetLoss(problem.head_VH, None)(problem.hidden_NH, problem.targets(kl=False), None)
    got.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="taken backward already"):
        got.loss.backward()


def test_a_kl_needs_both_its_parts() -> None:
    problem = Problem()
    with pytest.raises(ValueError, match="both its weights"):
        SoftTargetLoss(problem.head_VH, None)(problem.hidden_NH, problem.targets(), None)


def test_the_head_is_written_to_no_checkpoint_twice() -> None:
    problem = Problem()
    assert SoftTargetLoss(problem.head_VH, problem.ref_head_VH).state_dict() == {}
