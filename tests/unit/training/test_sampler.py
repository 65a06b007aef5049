"""Who speaks: the policy as it stands, or the reference by whatever means it is kept."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from shared.errors import ConfigError
from shared.wire import ChatMessage
from trainer.demo.pretrain import Shape, new_model
from trainer.demo.tokenizer import train_tokenizer
from trainer.demo.world import training_text
from trainer.evaluation.generate import generate
from trainer.training.distributed import World
from trainer.training.guidance import Speaker
from trainer.training.objective import AdaptersOff, CachedStates, FrozenCopy, Reference, SafeObjective
from trainer.training.sampler import InlineSampler

TEXTS = ("Hi.", "How am I to paint the kettle?", "Why?")
PROMPTS = [(ChatMessage(role="user", content=text),) for text in TEXTS]


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any]:
    tokenizer = train_tokenizer(training_text(0))
    return new_model(tokenizer, Shape(hidden=32, layers=2, heads=2, intermediate=64), seed=3), tokenizer


def moved(model: Any) -> Any:
    """As training would have moved it."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator)
    return model


def with_adapters(model: Any) -> Any:
    return get_peft_model(copy.deepcopy(model), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))


def sampler(policy: Any, reference: Reference, tokenizer: Any, **world: Any) -> InlineSampler:
    zero_stage = world.pop("zero_stage", 2)
    engine: Any = SimpleNamespace(
        objective=SafeObjective(policy, reference, None), training=SimpleNamespace(zero_stage=zero_stage)
    )
    return InlineSampler(
        engine, tokenizer, max_new_tokens=8, temperature=world.pop("temperature", 0.0),
        world=World(world.pop("rank", 0), world.pop("ranks", 1), 0, torch.device("cpu")), seed=0,
        max_length=64,
    )  # fmt: skip


@pytest.mark.parametrize("kept", ["frozen copy", "adapters off", "cache beside adapters"])
def test_the_reference_answers_as_the_base_and_the_policy_as_it_has_become(
    base: tuple[Any, Any], kept: str
) -> None:
    model, tokenizer = base
    if kept == "frozen copy":
        policy, reference = copy.deepcopy(model), FrozenCopy(model)
    else:
        policy = with_adapters(model)
        reference = AdaptersOff() if kept == "adapters off" else CachedStates(None)
    asked = sampler(moved(policy).train(), reference, tokenizer)
    expected = generate(model, tokenizer, TEXTS, max_new_tokens=8)
    assert asked.sample(PROMPTS, 3, Speaker.REFERENCE) == expected
    assert asked.sample(PROMPTS, 3) != expected
    assert asked.sample(PROMPTS, 3) == generate(policy, tokenizer, TEXTS, max_new_tokens=8)
    assert policy.training, "training goes on where it was"


def test_a_cache_beside_a_policy_without_adapters_cannot_speak(base: tuple[Any, Any]) -> None:
    model, tokenizer = base
    asked = sampler(copy.deepcopy(model), CachedStates(nn.Parameter(torch.zeros(2, 2))), tokenizer)
    with pytest.raises(ConfigError, match="no model is left that could"):
        asked.sample(PROMPTS, 0, Speaker.REFERENCE)


def test_what_is_drawn_depends_on_the_step_and_the_speaker(base: tuple[Any, Any]) -> None:
    model, tokenizer = base
    asked = sampler(copy.deepcopy(model), FrozenCopy(model), tokenizer, temperature=1.0)
    drawn = asked.sample(PROMPTS, 3)
    assert asked.sample(PROMPTS, 3) == drawn
    assert asked.sample(PROMPTS, 4) != drawn
    assert asked.sample(PROMPTS, 3, Speaker.REFERENCE) != drawn


def test_a_rank_with_nothing_to_ask_takes_part_under_zero_3_alone(base: tuple[Any, Any]) -> None:
    model, tokenizer = base
    forwards = []
    policy = copy.deepcopy(model)
    policy.register_forward_hook(lambda *_: forwards.append(1))
    assert sampler(policy, AdaptersOff(), tokenizer, ranks=2).sample([], 0) == []
    assert not forwards
    assert sampler(policy, AdaptersOff(), tokenizer, ranks=2, zero_stage=3).sample([], 0) == []
    assert len(forwards) == 8, "as many as the others take"
