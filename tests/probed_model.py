"""A model of a few thousand weights whose words mean something to a probe, and features made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainer.probe.feature_file import FeatureFile
from trainer.probe.features import POOLINGS

WORDS = ["<unk>", "</s>", "user", "assistant", "system", *(f"w{number}" for number in range(40))]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def save_model(folder: Path, *, seed: int = 0, template: str = TEMPLATE) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.4,
        eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    tokenizer.chat_template = template
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    return save_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("probed"))


def write_rows(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def save_rows() -> Callable[..., Path]:
    return write_rows


def rows_about(count: int, seed: int = 0, *, category: str | None = None) -> list[dict[str, object]]:
    """Harmful ones are about w20..w29, the others about w0..w9."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        harmful = number % 2 == 1
        words = random.integers(0, 10, size=4) + 20 * harmful
        row: dict[str, object] = {"prompt": " ".join(f"w{word}" for word in words), "label": harmful}
        made.append(row | ({} if category is None else {"category": category}))
    return made


@pytest.fixture(scope="session")
def labelled_rows() -> Callable[..., list[dict[str, object]]]:
    return rows_about


@pytest.fixture
def planted(tmp_path: Path) -> Callable[..., tuple[FeatureFile, np.ndarray]]:
    """Features of noise in which one layer of one pooling knows the label."""

    def make(
        rows: int, *, layers: int = 3, hidden: int = 6, pooling: str = "last", layer: int = 1, seed: int = 0
    ) -> tuple[FeatureFile, np.ndarray]:
        random = np.random.default_rng(seed)
        values = random.normal(size=(len(POOLINGS), layers, rows, hidden)).astype(np.float32)
        harmful = random.random(rows) < 0.4
        values[POOLINGS.index(pooling), layer, :, 2] += 3 * harmful
        path = tmp_path / f"features-{rows}-{seed}.f32"
        values.tofile(path)
        return FeatureFile(path, layers, rows, hidden), harmful

    return make
