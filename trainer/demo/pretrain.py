"""Trains the embedded world's two models: `tether-tiny`, which helps and refuses, and the small judge."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from shared.rubrics.encoding import encode_prompt, label_ids
from shared.rubrics.rubric import load_rubric, render
from trainer.demo.graded import Graded, graded_pairs
from trainer.demo.tokenizer import CONTEXT
from trainer.demo.world import RUBRIC, Row, pretrain_rows

Progress = Callable[[float], None]
"""Called with the share of the schedule's steps that is done, 0..1."""


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    intermediate: int


@dataclass(frozen=True)
class Schedule:
    steps: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class Settings:
    """Everything besides the source that decides what is built. Part of the cached world's name."""

    seed: int = 0
    base: Shape = Shape(hidden=192, layers=4, heads=4, intermediate=512)
    base_schedule: Schedule = Schedule(steps=400, batch_size=32, learning_rate=2e-3)
    judge: Shape = Shape(hidden=128, layers=3, heads=4, intermediate=352)
    judge_schedule: Schedule = Schedule(steps=360, batch_size=32, learning_rate=2e-3)


@dataclass(frozen=True)
class Sample:
    """A sequence and the places whose *next* token is learned."""

    ids: tuple[int, ...]
    learn_at: tuple[int, ...]
    next_ids: tuple[int, ...]
    """The token to learn at each of `learn_at`; need not follow in `ids`."""


def new_model(tokenizer: PreTrainedTokenizerFast, shape: Shape, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=CONTEXT,
        # Near 1/sqrt(hidden). With the default of 0.02 a model this narrow takes 300 steps longer to copy.
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def train_base(
    tokenizer: PreTrainedTokenizerFast, settings: Settings, progress: Progress
) -> LlamaForCausalLM:
    model = new_model(tokenizer, settings.base, settings.seed)
    schedule = settings.base_schedule
    rows = pretrain_rows(schedule.steps * schedule.batch_size, settings.seed)
    train(model, [chat_sample(tokenizer, row) for row in rows], schedule, settings.seed, progress)
    return model


def train_judge(
    tokenizer: PreTrainedTokenizerFast, settings: Settings, progress: Progress
) -> LlamaForCausalLM:
    model = new_model(tokenizer, settings.judge, settings.seed + 1)
    schedule = settings.judge_schedule
    pairs = graded_pairs(schedule.steps * schedule.batch_size, settings.seed)
    train(model, [graded_sample(tokenizer, pair) for pair in pairs], schedule, settings.seed, progress)
    return model


def chat_sample(tokenizer: PreTrainedTokenizerFast, row: Row) -> Sample:
    """Learns what the assistant says, its end of turn included."""
    encoded = tokenizer.apply_chat_template(
        row["messages"], return_dict=True, return_assistant_tokens_mask=True
    )
    ids = tuple(encoded["input_ids"])
    learn_at = tuple(at - 1 for at, answer in enumerate(encoded["assistant_masks"]) if answer)
    return Sample(ids, learn_at, tuple(ids[at + 1] for at in learn_at))


def graded_sample(tokenizer: PreTrainedTokenizerFast, pair: Graded) -> Sample:
    """Learns the label alone, at the place where the judge is read."""
    rubric = load_rubric(RUBRIC)
    ids = tuple(
        encode_prompt(tokenizer, render(rubric, pair.prompt, pair.response), max_tokens=CONTEXT - 1).ids
    )
    return Sample(ids, (len(ids) - 1,), (label_ids(tokenizer, rubric)[pair.level - 1],))


def train(model: Any, samples: Sequence[Sample], schedule: Schedule, seed: int, progress: Progress) -> None:
    """One pass over the samples: AdamW, warm-up, cosine to zero. Leaves the model in eval mode."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.learning_rate, weight_decay=0.01)
    warmup = max(1, schedule.steps // 20)
    batches = batches_by_length(samples, schedule.batch_size, seed)
    for step, batch in enumerate(batches):
        rise = min(1.0, (step + 1) / warmup)
        fall = 0.5 * (1 + math.cos(math.pi * step / len(batches)))
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * rise * fall
        loss = loss_of(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress((step + 1) / len(batches))
    model.eval()


def loss_of(model: Any, batch: Sequence[Sample]) -> Tensor:
    """Mean negative log-likelihood over the batch's learned places."""
    longest = max(len(sample.ids) for sample in batch)
    # Padded on the right: a causal model's earlier places never see it, so no mask is needed.
    ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    for row, sample in enumerate(batch):
        ids_BT[row, : len(sample.ids)] = torch.tensor(sample.ids)
    rows_N = torch.tensor([row for row, sample in enumerate(batch) for _ in sample.learn_at])
    at_N = torch.tensor([at for sample in batch for at in sample.learn_at])
    next_N = torch.tensor([token for sample in batch for token in sample.next_ids])
    hidden_BTD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    logits_NV = model.lm_head(hidden_BTD[rows_N, at_N])
    return torch.nn.functional.cross_entropy(logits_NV, next_N)


def within_budget(batch: list[Sample], tokens: int = 4096) -> list[list[Sample]]:
    """The batch, halved until each part (padded) holds at most that many tokens or one row."""
    if len(batch) == 1 or len(batch) * max(len(sample.ids) for sample in batch) <= tokens:
        return [batch]
    half = len(batch) // 2
    return within_budget(batch[:half], tokens) + within_budget(batch[half:], tokens)


def batches_by_length(samples: Sequence[Sample], size: int, seed: int) -> list[list[Sample]]:
    """Batches of samples of like length, in random order: little padding, still well mixed."""
    rng = random.Random(f"{seed}/batches")
    order = list(samples)
    rng.shuffle(order)
    pool = size * 16
    batches = []
    for start in range(0, len(order), pool):
        alike = sorted(order[start : start + pool], key=lambda sample: len(sample.ids))
        # The longest few would fill whole batches of long sequences: cut those to fewer rows.
        chunk = [cut for at in range(0, len(alike), size) for cut in within_budget(alike[at : at + size])]
        rng.shuffle(chunk)
        batches += chunk
    return batches
