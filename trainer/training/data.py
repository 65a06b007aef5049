"""Rows of a training file -> token ids with the answer marked, and padded batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.errors import DataError, ModelError
from shared.training import Training
from trainer.data.rows import ChatRow, parse_rows

IGNORED = -100
"""Label of a position that is not an answer token."""


@dataclass(frozen=True)
class Example:
    """One row as it trains."""

    row: ChatRow
    ids: tuple[int, ...]
    is_answer: tuple[bool, ...]
    """Whether a position holds a token that the assistant says, its end-of-turn token included."""
    truncated: bool

    @property
    def answer_tokens(self) -> int:
        """Tokens that are trained. The first position has no prediction."""
        return sum(self.is_answer[1:])

    @property
    def prompt_length(self) -> int:
        """Positions before the last assistant turn."""
        last = len(self.is_answer)
        while last and not self.is_answer[last - 1]:
            last -= 1
        while last and self.is_answer[last - 1]:
            last -= 1
        return last


@dataclass(frozen=True)
class Batch:
    """B examples, right-padded to T positions. N answer tokens in all."""

    ids_BT: Tensor
    attention_BT: Tensor
    answer_at_N: Tensor
    """Flat index b*T + t of the position whose logits predict the token."""
    label_N: Tensor
    example_N: Tensor
    count_B: Tensor
    prompt_end_B: Tensor
    """Position of the last token before the last assistant turn; -1 where nothing stands before it."""
    weight_B: Tensor | None = None
    """Of each example in the loss; None: 1."""
    ref_hidden_NH: Tensor | None = None
    """The reference's last hidden states at the answer tokens' positions, where they were had before."""
    ref_logits_NV: Tensor | None = None
    """Its logits there, of a model whose logits are more than its last hidden states times a matrix."""

    def to(self, device: torch.device) -> Batch:
        tensors: dict[str, Any] = {k: v if v is None else v.to(device) for k, v in vars(self).items()}
        return Batch(**tensors)


def load_rows(path: Path) -> list[ChatRow]:
    """Reads and checks a training file.

    Raises:
        DataError: with the line that is wrong.
    """
    with path.open("rb") as lines:
        return parse_rows(lines)


def template_ids(tokenizer: Any, messages: Sequence[dict[str, str]], *, prompt: bool) -> list[int]:
    """A conversation as token ids; with `prompt` up to where the assistant begins to speak."""
    encoded = tokenizer.apply_chat_template(
        list(messages), tokenize=True, add_generation_prompt=prompt, return_dict=True
    )
    return list(encoded["input_ids"])


def as_dicts(row: ChatRow) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in row.messages]


def encode_row(row: ChatRow, tokenizer: Any, max_length: int, too_long: str) -> Example:
    """Every assistant turn is an answer.

    Raises:
        DataError: longer than `max_length` where that is refused, or with no room for an answer.
        ModelError: the chat template rewrites earlier turns, so the answer cannot be located.
    """
    messages = as_dicts(row)
    ids = template_ids(tokenizer, messages, prompt=False)
    is_answer = [False] * len(ids)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = template_ids(tokenizer, messages[:index], prompt=True)
        through = template_ids(tokenizer, messages[: index + 1], prompt=False)
        if through[: len(before)] != before or ids[: len(through)] != through:
            raise ModelError(
                f"line {row.line}: the base's chat template does not render turn {index + 1} as a"
                " continuation of the turns before it; register the base with another template"
                " (tether models add ... --chat-template FILE)"
            )
        for position in range(len(before), len(through)):
            is_answer[position] = True
    truncated = len(ids) > max_length
    if truncated and too_long == "refuse":
        raise DataError(
            f"the row has {len(ids)} tokens, more than the {max_length} allowed; shorten it, raise"
            " training.max_length, or set training.too_long to 'truncate'",
            line=row.line,
        )
    if not any(is_answer[1:max_length]):
        raise DataError(
            f"the prompt alone takes all of the {max_length} tokens allowed; shorten it or raise"
            " training.max_length",
            line=row.line,
        )
    return Example(row, tuple(ids[:max_length]), tuple(is_answer[:max_length]), truncated)


def encode_rows(rows: Sequence[ChatRow], tokenizer: Any, training: Training, context: int) -> list[Example]:
    max_length = min(training.max_length or context, context)
    return [encode_row(row, tokenizer, max_length, training.too_long) for row in rows]


def collate_prompts(examples: Sequence[Example], pad_id: int) -> Batch:
    """What stands before the last answers, with nothing to predict."""
    prompts = [example.ids[: example.prompt_length] for example in examples]
    longest = max(map(len, prompts))
    none_N = torch.zeros(0, dtype=torch.long)
    return Batch(
        ids_BT=torch.tensor([[*ids, *[pad_id] * (longest - len(ids))] for ids in prompts]),
        attention_BT=torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in prompts]),
        answer_at_N=none_N,
        label_N=none_N,
        example_N=none_N,
        count_B=torch.zeros(len(prompts), dtype=torch.long),
        prompt_end_B=torch.tensor([len(ids) - 1 for ids in prompts]),
    )


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Pads to the longest. The logits at position t predict the token at t+1."""
    longest = max(len(example.ids) for example in examples)
    ids_BT = torch.full((len(examples), longest), pad_id, dtype=torch.long)
    attention_BT = torch.zeros((len(examples), longest), dtype=torch.long)
    answer_at, label, owner = [], [], []
    for b, example in enumerate(examples):
        ids_BT[b, : len(example.ids)] = torch.tensor(example.ids)
        attention_BT[b, : len(example.ids)] = 1
        for t in range(1, len(example.ids)):
            if example.is_answer[t]:
                answer_at.append(b * longest + t - 1)
                label.append(example.ids[t])
                owner.append(b)
    example_N = torch.tensor(owner)
    return Batch(
        ids_BT=ids_BT,
        attention_BT=attention_BT,
        answer_at_N=torch.tensor(answer_at),
        label_N=torch.tensor(label),
        example_N=example_N,
        count_B=torch.bincount(example_N, minlength=len(examples)),
        prompt_end_B=torch.tensor([example.prompt_length - 1 for example in examples]),
    )
