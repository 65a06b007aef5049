from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from shared.errors import DataError, ModelError
from trainer.data.rows import parse_rows
from trainer.demo import world
from trainer.demo.tokenizer import train_tokenizer
from trainer.training.data import Example, collate, encode_row


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(world.training_text(0)[:300])


def encode(
    tokenizer: Any, *turns: tuple[str, str], max_length: int = 512, too_long: str = "truncate"
) -> Example:
    line = json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})
    return encode_row(parse_rows([line.encode()])[0], tokenizer, max_length, too_long)


def answer_text(tokenizer: Any, example: Example) -> str:
    ids = [i for i, is_answer in zip(example.ids, example.is_answer, strict=True) if is_answer]
    return str(tokenizer.decode(ids))


def test_only_what_the_assistant_says_is_trained(tokenizer: Any) -> None:
    example = encode(tokenizer, ("system", "Be brief."), ("user", "Two plus two?"), ("assistant", "Four."))
    assert answer_text(tokenizer, example) == "Four.<|end|>"


def test_every_assistant_turn_is_trained(tokenizer: Any) -> None:
    example = encode(tokenizer, ("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two"))
    assert answer_text(tokenizer, example) == "one<|end|>two<|end|>"


def test_a_long_row_loses_the_end_of_its_answer_or_is_refused_by_line(tokenizer: Any) -> None:
    turns = (("user", "hello"), ("assistant", "word " * 50))
    example = encode(tokenizer, *turns, max_length=20)
    assert example.truncated
    assert len(example.ids) == 20
    with pytest.raises(DataError, match=r"line 1: the row has \d+ tokens, more than the 20 allowed"):
        encode(tokenizer, *turns, max_length=20, too_long="refuse")


def test_a_prompt_that_leaves_no_room_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="line 1: the prompt alone takes all of the 10 tokens"):
        encode(tokenizer, ("user", "word " * 50), ("assistant", "x"), max_length=10)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    tokenizer = train_tokenizer(world.training_text(0)[:100])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:{{ m['content'] if loop.last else 'gone' }}|{% endfor %}"
    )
    with pytest.raises(ModelError, match="does not render turn 2 as a continuation"):
        encode(tokenizer, ("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two"))


def test_logits_of_one_position_predict_the_next(tokenizer: Any) -> None:
    examples = [
        encode(tokenizer, ("user", "Two plus two?"), ("assistant", "Four.")),
        encode(tokenizer, ("user", "Hi"), ("assistant", "Hello to you too.")),
    ]
    batch = collate(examples, tokenizer.pad_token_id)
    flat = batch.ids_BT.flatten()
    torch.testing.assert_close(flat[batch.answer_at_N + 1], batch.label_N)
    assert batch.count_B.tolist() == [sum(example.is_answer) for example in examples]
    assert batch.attention_BT.sum(1).tolist() == [len(example.ids) for example in examples]
