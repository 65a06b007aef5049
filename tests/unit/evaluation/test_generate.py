"""Batched generation says what transformers' own says, prompt by prompt, and keeps the order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shared.errors import ConfigError, ModelError
from trainer.demo.pretrain import Shape, new_model
from trainer.demo.tokenizer import train_tokenizer
from trainer.demo.world import training_text
from trainer.evaluation.generate import generate, load_for_generation

PROMPTS = ["Hi.", "How am I to paint the kettle?", "Say a longer thing than before, please.", "x", "Why?"]


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    tokenizer = train_tokenizer(training_text(0))
    model = new_model(tokenizer, Shape(hidden=32, layers=2, heads=2, intermediate=64), seed=3)
    with torch.no_grad():
        # Likelier ends, so that answers differ in length.
        model.model.embed_tokens.weight[tokenizer.eos_token_id] *= 2
    return model.eval(), tokenizer


def test_greedy_agrees_with_transformers_one_by_one(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    expected = []
    for prompt in PROMPTS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        out = model.generate(
            ids["input_ids"],
            attention_mask=torch.ones_like(ids["input_ids"]),
            max_new_tokens=12,
            do_sample=False,
        )
        expected.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    for batch_size in (1, 2, 5):
        assert generate(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=batch_size) == expected


def test_sampling_is_seeded_and_leaves_the_global_generator_alone(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    before = torch.random.get_rng_state()
    one, same, other = (
        generate(model, tokenizer, PROMPTS, max_new_tokens=8, temperature=1.0, seed=seed)
        for seed in (1, 1, 2)
    )
    assert one == same != other
    assert torch.equal(before, torch.random.get_rng_state())


def test_training_mode_is_put_back_and_progress_told(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    model.train()
    told: list[int] = []
    generate(model, tokenizer, PROMPTS, max_new_tokens=2, batch_size=2, on_done=told.append)
    assert model.training
    assert told == [2, 2, 1]
    model.eval()


def test_no_prompts_no_answers(pair: tuple[Any, Any]) -> None:
    assert generate(*pair, []) == []


def test_bad_settings_and_folders(pair: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="temperature -1"):
        generate(*pair, PROMPTS, temperature=-1)
    with pytest.raises(ModelError, match="no model can be loaded"):
        load_for_generation(tmp_path)
