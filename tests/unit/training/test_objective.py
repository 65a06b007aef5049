"""Policy, reference and loss together, on a random model: each kind of reference gives the same values."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from shared.errors import ConfigError
from trainer.data.rows import ChatRow
from trainer.training.data import Batch, Example, collate
from trainer.training.losses import example_losses, objective
from trainer.training.objective import (
    AdaptersOff,
    CachedStates,
    Features,
    FrozenCopy,
    NoReference,
    SafeObjective,
    answer_hidden,
    plain_head,
)
from trainer.training.reference import compute_states, with_states

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)
BETA_B = torch.tensor([0.1, 1.0, 0.6])


def tiny(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIG)
    for name, value in changes.items():
        setattr(config, name, value)
    return LlamaForCausalLM(config)


def examples() -> list[Example]:
    row = ChatRow(messages=(), harm_score=None, line=1)
    lengths = ((5, 9), (3, 4), (2, 12))
    generator = torch.Generator().manual_seed(1)
    return [
        Example(
            row,
            tuple(torch.randint(0, 64, (length,), generator=generator).tolist()),
            tuple(position >= prompt for position in range(length)),
            truncated=False,
        )
        for prompt, length in lengths
    ]


def batch() -> Batch:
    return collate(examples(), pad_id=0)


def moved(model: Any) -> Any:
    """A policy that training has moved away from its reference."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def plain(policy: Any, reference: Any, on: Batch) -> Tensor:
    """The formula over whole logits, with no code of `objective.py`."""

    def logits_NV(model: Any) -> Tensor:
        logits_BTV = model(input_ids=on.ids_BT, attention_mask=on.attention_BT).logits
        return logits_BTV.flatten(0, 1)[on.answer_at_N]

    with torch.no_grad():
        ref_NV = logits_NV(reference)
    losses = example_losses(logits_NV(policy), on.label_N, on.example_N, on.count_B, ref_NV)
    return objective(losses, BETA_B)


def grads(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def same(mine: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert mine.keys() == other.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], other[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_a_frozen_copy_gives_the_plain_formula(tied: bool) -> None:
    reference = tiny(tie_word_embeddings=tied).requires_grad_(False)
    policy = moved(tiny(tie_word_embeddings=tied))
    loss = plain(policy, reference, batch())
    loss.backward()
    expected = grads(policy)
    module = SafeObjective(policy, FrozenCopy(reference), plain_head(policy))
    assert module.from_hidden is not None
    mine, seen = module(batch(), BETA_B)
    mine.backward()
    torch.testing.assert_close(mine, loss)
    same(grads(policy), expected)
    torch.testing.assert_close(objective(seen, BETA_B), loss.detach())


def with_adapters(model: Any) -> Any:
    return moved(get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])))


def test_adapters_off_gives_the_plain_formula() -> None:
    policy = with_adapters(tiny())
    loss = plain(policy, tiny(), batch())
    loss.backward()
    expected = grads(policy)
    module = SafeObjective(policy, AdaptersOff(), plain_head(policy))
    mine, _ = module(batch(), BETA_B)
    mine.backward()
    torch.testing.assert_close(mine, loss)
    same(grads(policy), expected)
    assert "lm_head" not in "".join(expected), "the head is frozen"


def alone() -> Any:
    """Collective of one rank."""
    return SimpleNamespace(
        world=SimpleNamespace(rank=0, ranks=1, device=torch.device("cpu")), barrier=lambda: None
    )


def states_of(module: SafeObjective, directory: Path, told: list[int] | None = None) -> Any:
    return compute_states(
        directory,
        examples(),
        module,
        alone(),
        dtype=torch.float32,
        micro_batch=2,
        pad_id=0,
        tell=lambda done, _: None if told is None else told.append(done),
    )


def test_states_on_disk_give_the_plain_formula(tmp_path: Path) -> None:
    """Taken before the policy moves; rows in another order than they were written; used again."""
    policy, told = tiny(), list[int]()
    head_VH = nn.Parameter(policy.get_output_embeddings().weight.detach().clone(), requires_grad=False)
    module = SafeObjective(policy, CachedStates(head_VH), plain_head(policy))
    states_of(module, tmp_path / "states", told)
    assert told == [2, 3]
    module.train()
    moved(policy)
    states = states_of(module, tmp_path / "states", told)
    assert told == [2, 3], "what is whole is not computed again"
    order = [2, 0, 1]
    on = collate([examples()[row] for row in order], pad_id=0)
    loss = plain(policy, tiny(), on)
    loss.backward()
    expected = grads(policy)
    mine, _ = module(with_states(on, states, order), BETA_B)
    mine.backward()
    torch.testing.assert_close(mine, loss)
    same(grads(policy), expected)


def test_states_that_were_cut_short_are_computed_again(tmp_path: Path) -> None:
    policy, told = tiny(), list[int]()
    module = SafeObjective(policy, CachedStates(None), plain_head(policy))
    states_of(module, tmp_path)
    (tmp_path / "whole.json").unlink()
    states_of(module, tmp_path, told)
    assert told == [2, 3]


def test_no_reference_is_plain_likelihood() -> None:
    policy = tiny()
    module = SafeObjective(policy, NoReference(), plain_head(policy))
    loss, seen = module(batch(), BETA_B)
    assert seen.kl_B is None
    torch.testing.assert_close(loss, seen.nll_B.sum())


class Capped(nn.Module):
    """A model that does more to its logits than its head says."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()

    def get_decoder(self) -> Any:
        return self.inner.get_decoder()

    def forward(self, **arguments: Any) -> Any:
        out = self.inner(**arguments)
        out.logits = 0.5 * torch.tanh(out.logits / 0.5)
        return out


def test_a_head_with_more_to_it_takes_whole_logits(tmp_path: Path) -> None:
    policy, reference = Capped(moved(tiny())), Capped(tiny())
    assert plain_head(policy) is None
    module = SafeObjective(policy, FrozenCopy(reference), plain_head(policy))
    mine, _ = module(batch(), BETA_B)
    torch.testing.assert_close(mine, plain(policy, reference, batch()))
    with pytest.raises(ConfigError, match="'cache' needs a base whose logits"):
        states_of(module, tmp_path)


def test_adapters_on_the_head_take_whole_logits() -> None:
    policy = get_peft_model(tiny(), LoraConfig(r=4, target_modules=["q_proj", "lm_head"]))
    assert plain_head(policy) is None


# --- the reference's forward, taken ahead ------------------------------------------------------

READ = Features(layers=(1, 2), pooling="last")


class Counted:
    """How often the decoders of a module's models run."""

    def __init__(self, *models: Any) -> None:
        self.forwards = 0
        for decoder in {id(model.get_decoder()): model.get_decoder() for model in models}.values():
            decoder.register_forward_hook(self._ran)

    def _ran(self, *_: Any) -> None:
        self.forwards += 1


def kinds_of_reference() -> Iterator[tuple[str, SafeObjective, Batch]]:
    """Each with the batch that it trains on; the policy has moved."""
    reference = tiny().requires_grad_(False)
    policy = moved(tiny())
    yield "frozen copy", SafeObjective(policy, FrozenCopy(reference), plain_head(policy)), batch()
    adapted = with_adapters(tiny())
    yield "adapters off", SafeObjective(adapted, AdaptersOff(), plain_head(adapted)), batch()
    capped = Capped(moved(tiny()))
    yield "logits", SafeObjective(capped, FrozenCopy(Capped(reference)), plain_head(capped)), batch()


def test_taken_ahead_the_reference_runs_once_and_gives_the_same_loss_and_features() -> None:
    """No forward more with a probe than without, and the probe's features are the reference's, whatever the
    policy has become."""
    expected_BLH = None
    for name, module, on in kinds_of_reference():
        models = [model for model in (module.policy, module.reference) if model is not None]
        count = Counted(*models)
        expected, _ = module(on, BETA_B)
        assert count.forwards == 2, name
        count.forwards = 0
        ahead, read_BLH = module.look(on, READ)
        assert count.forwards == 1, name
        loss, _ = module(ahead, BETA_B)
        assert count.forwards == 2, name
        assert torch.equal(loss, expected), name
        assert read_BLH is not None
        assert read_BLH.shape == (3, 2, CONFIG.hidden_size)
        if expected_BLH is None:
            expected_BLH = read_BLH
        torch.testing.assert_close(read_BLH, expected_BLH, msg=name)
        assert module.look(on, None)[1] is None


def test_states_on_disk_bring_the_features_in_the_same_pass(tmp_path: Path) -> None:
    policy = tiny()
    module = SafeObjective(policy, CachedStates(None), plain_head(policy))
    got: dict[int, Tensor] = {}

    def read(rows_of: Sequence[Sequence[int]], read_BLH: Tensor) -> None:
        got.update(zip(rows_of[0], read_BLH, strict=True))

    count = Counted(policy)
    for _ in range(2):
        compute_states(
            tmp_path, examples(), module, alone(),
            dtype=torch.float32, micro_batch=2, pad_id=0, tell=lambda *_: None, features=READ, read=read,
        )  # fmt: skip
        assert count.forwards == 2
    _, expected_BLH = module.look(batch(), READ)
    assert expected_BLH is not None
    torch.testing.assert_close(torch.stack([got[row] for row in range(3)]), expected_BLH)


@pytest.mark.parametrize("adapted", [False, True])
def test_training_the_policy_does_not_change_what_is_read(adapted: bool) -> None:
    """The probe belongs to the frozen reference."""
    policy = with_adapters(tiny()) if adapted else tiny()
    kind = AdaptersOff() if adapted else FrozenCopy(tiny().requires_grad_(False))
    module = SafeObjective(policy, kind, plain_head(policy))
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.5)
    before = module.look(batch(), READ)[1]
    assert before is not None
    moving = answer_hidden(policy, batch()).detach()
    for _ in range(3):
        ahead, _ = module.look(batch(), READ)
        module(ahead, BETA_B)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    after = module.look(batch(), READ)[1]
    assert after is not None
    assert torch.equal(before, after)
    assert not torch.equal(answer_hidden(policy, batch()), moving)


def test_an_example_of_no_weight_does_not_train() -> None:
    policy = moved(tiny())
    reference = tiny().requires_grad_(False)
    module = SafeObjective(policy, FrozenCopy(reference), plain_head(policy))
    module(replace(batch(), weight_B=torch.tensor([1.0, 0.0, 1.0])), BETA_B)[0].backward()
    mine = grads(policy)
    kept = collate([examples()[0], examples()[2]], pad_id=0)
    module(kept, BETA_B[[0, 2]])[0].backward()
    same(mine, grads(policy))
    by_logits = SafeObjective(Capped(policy), FrozenCopy(Capped(reference)), None)
    whole, _ = by_logits(replace(batch(), weight_B=torch.tensor([1.0, 0.0, 1.0])), BETA_B)
    torch.testing.assert_close(whole, by_logits(kept, BETA_B[[0, 2]])[0])
