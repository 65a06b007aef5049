"""From a rendered rubric to token ids: one way, for the judge that grades and for whoever trains it.

Needs a tokenizer in transformers' shape but imports none of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from shared.errors import ConfigError
from shared.rubrics.rubric import Rubric, Segment

CUT_MARK = "\n[... cut ...]\n"
"""Stands where the middle of a too long text was taken out."""

MIN_GRADED_TOKENS = 16
"""Fewer left for the graded text than this is no grading."""


T = TypeVar("T")


class Tokenizer(Protocol):
    """The part of `transformers.PreTrainedTokenizerFast` that is used here."""

    bos_token_id: int | None

    # Any: transformers' own signature cannot be written as a protocol without importing it.
    @property
    def __call__(self) -> Callable[..., Any]: ...


def encode_text(tokenizer: Tokenizer, text: str, *, trusted: bool) -> list[int]:
    """Ids of one segment. Untrusted text that spells a special token becomes ordinary tokens."""
    if not text:
        return []
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=not trusted)["input_ids"]
    return [int(token) for token in ids]


def leading_bos(tokenizer: Tokenizer) -> list[int]:
    """`[bos]` where the tokenizer itself begins every text with it, else `[]`."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return []
    ids = tokenizer("x", add_special_tokens=True)["input_ids"]
    return [bos] if ids and ids[0] == bos else []


@dataclass(frozen=True)
class PromptIds:
    ids: list[int]
    truncated: bool
    """Graded text was left out to make it fit."""


@dataclass(frozen=True)
class ChatText:
    text: str
    truncated: bool
    """Graded text was left out to make it fit."""


def encode_prompt(tokenizer: Tokenizer, segments: Sequence[Segment], *, max_tokens: int) -> PromptIds:
    """The judge's prompt as at most `max_tokens` ids; the label is the token after the last.

    Each segment is encoded on its own. Too long graded texts lose their middles, the longest first,
    and carry `CUT_MARK` there; the rubric is never cut.

    Raises:
        ValueError: the rubric alone leaves fewer than `MIN_GRADED_TOKENS` for the graded text.
    """
    bos = leading_bos(tokenizer)
    parts = [encode_text(tokenizer, segment.text, trusted=segment.trusted) for segment in segments]
    fixed = len(bos) + sum(len(ids) for ids, s in zip(parts, segments, strict=True) if s.trusted)
    budget = max_tokens - fixed
    if budget < MIN_GRADED_TOKENS:
        raise ValueError(
            f"the rubric takes {fixed} of the judge's {max_tokens} tokens; {MIN_GRADED_TOKENS} must be left"
        )
    lengths = [0 if s.trusted else len(ids) for ids, s in zip(parts, segments, strict=True)]
    truncated = sum(lengths) > budget
    if truncated:
        mark = encode_text(tokenizer, CUT_MARK, trusted=False)
        shares = fair_shares(lengths, budget)
        parts = [
            ids if s.trusted else cut_middle(ids, share, mark)
            for ids, s, share in zip(parts, segments, shares, strict=True)
        ]
    return PromptIds([*bos, *(token for ids in parts for token in ids)], truncated)


def label_ids(tokenizer: Tokenizer, rubric: Rubric, question: int = 0) -> tuple[int, ...]:
    """Ids that a question's labels have right after its suffix.

    Raises:
        ConfigError: they are not distinct single tokens, so their probabilities cannot be read.
    """
    asked = rubric.questions[question]
    before = encode_text(tokenizer, asked.suffix, trusted=True)
    found: list[int] = []
    for label in asked.labels:
        ids = encode_text(tokenizer, asked.suffix + label, trusted=True)
        if ids[:-1] != before:
            raise ConfigError(
                f"rubric {rubric.name!r}: label {label!r} is not one token after {asked.suffix!r} for this"
                f" judge's tokenizer (ids {ids[len(before) :]}); use a judge or a suffix where it is"
            )
        found.append(ids[-1])
    if len(set(found)) != len(asked.labels):
        raise ConfigError(
            f"rubric {rubric.name!r}: the labels {', '.join(asked.labels)} have the ids {found}, which are"
            " not distinct, for this judge's tokenizer"
        )
    return tuple(found)


def fair_shares(lengths: Sequence[int], budget: int) -> list[int]:
    """What each may keep of `budget` (>= 0): short ones whole, the long ones the same."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    shares = [0] * len(lengths)
    left = budget
    for rank, index in enumerate(order):
        shares[index] = min(lengths[index], left // (len(order) - rank))
        left -= shares[index]
    return shares


def cut_middle(ids: Sequence[T], keep: int, mark: Sequence[T]) -> list[T]:
    """At most `keep` of them: head, mark, tail. Without the mark where there is no room for it."""
    if len(ids) <= keep:
        return list(ids)
    room = keep - len(mark)
    if room < 2:
        return list(ids[:keep])
    tail = room // 2
    return [*ids[: room - tail], *mark, *ids[len(ids) - tail :]]


_MARKERS = re.compile(
    r"<(?=[|｜])|(?<=[|｜])(?=>)"  # harmony, ChatML, Llama 3, DeepSeek: <|name|>, <｜name｜>
    r"|<(?=/?(?:s|bos|eos|pad|unk|think|tool_call|start_of_turn|end_of_turn|start_of_image)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS)\])|<(?=</?SYS>>)",
    re.IGNORECASE,
)


def escape_markers(text: str) -> str:
    """Graded text for a server that takes strings: what chat formats call special gets a space inside.

    `<|end|>` becomes `< |end| >`. Where the tokenizer is at hand, `encode_text` splits instead.
    """
    return _MARKERS.sub(lambda found: found.group() + " ", text)


def chat_text(segments: Sequence[Segment], *, max_chars: int | None = None) -> ChatText:
    """One string of a chat prompt's segments, the graded text escaped and cut to `max_chars` in all.

    Too long graded texts lose their middles, the longest first, and carry `CUT_MARK` there.

    Raises:
        ValueError: what is not graded text alone leaves fewer than `MIN_GRADED_TOKENS` characters.
    """
    parts = [s.text if s.trusted else escape_markers(s.text) for s in segments]
    if max_chars is None or sum(map(len, parts)) <= max_chars:
        return ChatText("".join(parts), truncated=False)
    lengths = [0 if s.trusted else len(part) for part, s in zip(parts, segments, strict=True)]
    budget = max_chars - (sum(map(len, parts)) - sum(lengths))
    if budget < MIN_GRADED_TOKENS:
        raise ValueError(f"the rubric leaves {budget} of {max_chars} characters for the graded text")
    shares = fair_shares(lengths, budget)
    parts = [
        part if s.trusted else "".join(cut_middle(part, share, CUT_MARK))
        for part, s, share in zip(parts, segments, shares, strict=True)
    ]
    return ChatText("".join(parts), truncated=True)
