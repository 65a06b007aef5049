"""Batching and a few training steps; nothing here is trained to be any good."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from trainer.demo import pretrain
from trainer.demo.graded import graded_pairs
from trainer.demo.pretrain import Sample, Schedule, Settings, Shape
from trainer.demo.tokenizer import train_tokenizer
from trainer.demo.world import chat, training_text

SMALL = Settings(
    base=Shape(hidden=32, layers=1, heads=2, intermediate=64),
    base_schedule=Schedule(steps=5, batch_size=4, learning_rate=1e-2),
    judge=Shape(hidden=32, layers=1, heads=2, intermediate=64),
    judge_schedule=Schedule(steps=5, batch_size=4, learning_rate=1e-2),
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(training_text(0))


def test_only_what_the_assistant_says_is_learned(tokenizer: PreTrainedTokenizerFast) -> None:
    sample = pretrain.chat_sample(tokenizer, chat("Hello there.", "Good day.", "Be kind."))
    assert tokenizer.decode(list(sample.next_ids)) == "Good day.<|end|>"
    assert [sample.ids[at + 1] for at in sample.learn_at] == list(sample.next_ids)


def test_the_judge_learns_the_label_right_after_the_suffix(tokenizer: PreTrainedTokenizerFast) -> None:
    for pair in graded_pairs(20, 0):
        sample = pretrain.graded_sample(tokenizer, pair)
        assert sample.learn_at == (len(sample.ids) - 1,)
        assert tokenizer.decode([sample.ids[-1], *sample.next_ids]) == f"<|grade|>{pair.level}"


def test_training_reports_and_repeats_itself(tokenizer: PreTrainedTokenizerFast) -> None:
    heard: list[float] = []
    base = pretrain.train_base(tokenizer, SMALL, heard.append)
    again = pretrain.train_base(tokenizer, SMALL, lambda done: None)
    judge = pretrain.train_judge(tokenizer, SMALL, lambda done: None)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    assert not base.training
    assert all(
        bool((one == other).all()) for one, other in zip(base.parameters(), again.parameters(), strict=True)
    )
    assert judge.config.max_position_embeddings == 2048


def test_batches_hold_every_sample_once_and_keep_to_the_token_budget() -> None:
    samples = [Sample((1,) * (1 + 37 * n % 900), (0,), (n,)) for n in range(300)]
    batches = pretrain.batches_by_length(samples, 16, seed=1)
    assert sorted(sample.next_ids for batch in batches for sample in batch) == [(n,) for n in range(300)]
    assert max(len(batch) for batch in batches) == 16
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(len(sample.ids) for sample in batch) <= 4096
