"""A random judge small enough for unit tests, made of the real classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIALS = ["<|bos|>", "<|pad|>", "<|grade|>", "<|user|>", "<|assistant|>", "<|end|>"]
CONTEXT = 256


def save_judge(directory: Path, *, bos: bool = False, fences_special: bool = True) -> Path:
    """A tokenizer over bytes and a random Llama beside it, as `save_pretrained` lays them out."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(["the reply"], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    raw.add_tokens([AddedToken(token, special=fences_special) for token in SPECIALS])
    if bos:
        from tokenizers.processors import TemplateProcessing

        raw.post_processor = TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", raw.token_to_id("<|bos|>"))]
        )
    named = {"bos_token": "<|bos|>", "pad_token": "<|pad|>"} if fences_special else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **named)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(7)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            initializer_range=0.3,
        )
    )
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def special_tokens() -> list[str]:
    return SPECIALS


@pytest.fixture
def make_judge() -> Callable[..., Path]:
    return save_judge


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_judge(tmp_path_factory.mktemp("judge"))
