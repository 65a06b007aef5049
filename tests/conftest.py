"""Fixtures that every tier may ask for. Nothing starts unless a test asks."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from shared.embedded_redis import RunningRedis, running_redis

# Before anything loads torch: its threads must not spin on the cores that the servers under test need.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# ZeRO-3 keeps small parameters whole, and with them all of a tiny model: what it scatters would never
# be tried.
os.environ.setdefault("TETHER_ZERO3_LIVE_PARAMETERS", "0")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRedis]:
    """One real server for all tests that keep to a prefix. Never kill this one: start your own."""
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_prefix(redis_server: RunningRedis) -> Iterator[str]:
    """A prefix of this test's own; what stands under it is deleted afterwards."""
    prefix = f"test:{uuid4().hex}:"
    yield prefix
    with redis.Redis.from_url(redis_server.url) as client:
        if keys := list(client.scan_iter(match=f"{prefix}*", count=1000)):
            client.unlink(*keys)


JUDGE_SPECIALS = ["<|bos|>", "<|pad|>", "<|grade|>", "<|user|>", "<|assistant|>", "<|end|>"]


def save_judge(directory: Path, *, bos: bool = False, fences_special: bool = True) -> Path:
    """A judge made of the real classes, random and tiny: context 256, a token a byte.

    Laid out as `save_pretrained` does. It can grade by `demo-v1`, and means nothing by it.
    """
    # Here, or every tier would import torch.
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(["the reply"], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    raw.add_tokens([AddedToken(token, special=fences_special) for token in JUDGE_SPECIALS])
    if bos:
        raw.post_processor = processors.TemplateProcessing(
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
            max_position_embeddings=256,
            initializer_range=0.3,
        )
    )
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def make_judge() -> Callable[..., Path]:
    return save_judge


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`save_judge` as it is."""
    return save_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="session")
def special_tokens() -> list[str]:
    """Of that judge."""
    return JUDGE_SPECIALS


@dataclass(frozen=True)
class Injection:
    """One attack of injections.toml on a judge, through the text that it grades."""

    name: str
    kind: str
    text: str
    where: str = "reply"
    repeat: int = 1

    def pair(self, request: str, answer: str) -> tuple[str, str]:
        """(prompt, response) with the attack in one of them."""
        text = re.sub(r"\[\[(.+?)\]\]", lambda m: m[1] * self.repeat, self.text, flags=re.DOTALL)
        text = text.replace("{answer}", answer).replace("{request}", request)
        return (text, answer) if self.where == "request" else (request, text)


@pytest.fixture(scope="session")
def injections() -> list[Injection]:
    with (Path(__file__).parent / "injections.toml").open("rb") as file:
        return [Injection(**table) for table in tomllib.load(file)["injection"]]


def save_classifier(directory: Path) -> Path:
    """A sequence classifier of the real classes, random and tiny: context 64, labels fine, toxic, insult."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = [chr(code) for code in range(33, 127)]
    raw.train_from_iterator(
        ["HEAD TAIL cut"],
        trainers.WordPieceTrainer(vocab_size=400, special_tokens=names, initial_alphabet=letters),
    )
    ends = [(name, raw.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(directory)
    torch.manual_seed(5)
    BertForSequenceClassification(
        BertConfig(
            vocab_size=raw.get_vocab_size(),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            initializer_range=0.3,
            pad_token_id=raw.token_to_id("[PAD]"),
            id2label={0: "fine", 1: "toxic", 2: "insult"},
            label2id={"fine": 0, "toxic": 1, "insult": 2},
        )
    ).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("classifier"))
