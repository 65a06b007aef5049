from __future__ import annotations

import torch

from trainer.training.losses import ExampleLosses, example_losses, mean_by_example, objective, token_losses


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits_NV = torch.randn(7, 11, generator=generator, dtype=torch.float32)
    ref_NV = torch.randn(7, 11, generator=generator, dtype=torch.float32)
    labels_N = torch.randint(0, 11, (7,), generator=generator)
    example_N = torch.tensor([0, 0, 0, 1, 2, 2, 2])
    return logits_NV, ref_NV, labels_N, example_N


def test_kl_is_forward_over_the_whole_vocabulary() -> None:
    """Against torch.distributions, which knows nothing of our formula. KL(ref || policy), not the reverse."""
    logits_NV, ref_NV, labels_N, _ = problem()
    nll_N, kl_N = token_losses(logits_NV, labels_N, ref_NV)
    policy = torch.distributions.Categorical(logits=logits_NV)
    reference = torch.distributions.Categorical(logits=ref_NV)
    forward = torch.distributions.kl_divergence(reference, policy)
    backward = torch.distributions.kl_divergence(policy, reference)
    assert kl_N is not None
    torch.testing.assert_close(kl_N, forward, atol=1e-5, rtol=0)
    assert not torch.allclose(kl_N, backward, atol=1e-2)
    torch.testing.assert_close(nll_N, -policy.log_prob(labels_N), atol=1e-5, rtol=0)


def test_an_example_weighs_one_however_long_its_answer() -> None:
    value_N = torch.tensor([1.0, 2.0, 3.0, 10.0, 0.0, 0.0, 6.0])
    mean_B = mean_by_example(value_N, torch.tensor([0, 0, 0, 1, 2, 2, 2]), torch.tensor([3, 1, 3]))
    torch.testing.assert_close(mean_B, torch.tensor([2.0, 10.0, 2.0]))


def test_beta_moves_weight_from_the_data_to_the_reference_example_by_example() -> None:
    losses = ExampleLosses(nll_B=torch.tensor([2.0, 4.0]), kl_B=torch.tensor([10.0, 100.0]))
    assert objective(losses, torch.tensor([0.0, 0.0])) == 6.0
    assert objective(losses, torch.tensor([1.0, 1.0])) == 110.0
    assert objective(losses, torch.tensor([0.5, 0.0])) == 0.5 * 2 + 0.5 * 10 + 4


def test_the_optimum_of_a_token_is_the_mixture_of_label_and_reference() -> None:
    """NLL and KL together are a cross-entropy against q = alpha*onehot + beta*ref: its gradient in the
    logits is softmax - q."""
    logits_NV, ref_NV, labels_N, _ = problem(3)
    one = torch.arange(7)
    logits_NV.requires_grad_()
    losses = example_losses(logits_NV, labels_N, one, torch.ones(7, dtype=torch.long), ref_NV)
    objective(losses, torch.full((7,), 0.3)).backward()
    q_NV = 0.7 * torch.nn.functional.one_hot(labels_N, 11) + 0.3 * ref_NV.softmax(-1)
    torch.testing.assert_close(logits_NV.grad, logits_NV.detach().softmax(-1) - q_NV, atol=1e-6, rtol=0)


def test_without_a_reference_there_is_no_kl() -> None:
    logits_NV, _, labels_N, example_N = problem()
    losses = example_losses(logits_NV, labels_N, example_N, torch.tensor([3, 1, 3]), None)
    assert losses.kl_B is None
    torch.testing.assert_close(objective(losses, torch.zeros(3)), losses.nll_B.sum())
