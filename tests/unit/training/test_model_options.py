"""What `build_objective` makes of a job's memory settings, on a tiny base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from shared.errors import ConfigError
from shared.safety import Safety
from shared.training import Training
from trainer.data.rows import ChatRow
from trainer.training import model
from trainer.training.data import Example, collate
from trainer.training.run_spec import Base, RunSpec

BETA_B = torch.tensor([0.3, 0.6])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=32, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return Base(id="tiny", path=folder, context_length=32, lora_targets=("q_proj", "down_proj"))


def objective_of(base: Base, **training: Any) -> Any:
    spec = RunSpec(
        job_id="job",
        run_dir=Path("unused"),
        base=base,
        train_file=Path("unused"),
        safety=Safety.model_validate({"method": {"type": "fixed_kl"}}),
        training=Training.model_validate(training),
        seed=0,
    )
    torch.manual_seed(0)
    return model.build_objective(spec)


def trained(objective: Any) -> tuple[int, dict[str, Tensor]]:
    """Forwards of the first layer in one step, and the gradients."""
    row = ChatRow(1, ())
    examples = [
        Example(row, tuple(range(n)), (*(False for _ in range(n - 3)), True, True, True), False)
        for n in (6, 9)
    ]
    calls = []
    layer = objective.policy.get_decoder().layers[0].mlp
    # Before it: the second forward ends as soon as the backward has what it needs.
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    objective.train()
    loss, _ = objective(collate(examples, 0), BETA_B)
    loss.backward()
    return len(calls), {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_checkpointed_activations_are_computed_twice_and_the_gradients_are_the_same(
    base: Base, adapter: str
) -> None:
    calls, expected = trained(objective_of(base, adapter=adapter))
    more, mine = trained(objective_of(base, adapter=adapter, activation_checkpointing=True))
    assert more == calls + 1
    assert mine.keys() == expected.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], expected[name])


def test_a_base_in_four_bits_keeps_its_head_and_trains_its_adapters(base: Base) -> None:
    objective = objective_of(base, adapter={"type": "lora", "load_in_4bit": True})
    layer = objective.policy.get_decoder().layers[0].mlp.gate_proj
    assert type(layer).__name__ == "Linear4bit"
    assert layer.weight.dtype is torch.uint8
    assert objective.from_hidden is not None
    _, grads = trained(objective)
    assert grads
    assert all("lora_" in name for name in grads)


def test_four_bits_without_bitsandbytes_say_what_to_install(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes, which is not installed; .*trainer-4bit"):
        objective_of(base, adapter={"type": "lora", "load_in_4bit": True})
