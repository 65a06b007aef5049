"""What a chat completion says: a label, or a failure. Pure; every field is checked."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from judge_service.backends.pool import ItemFailed
from shared.wire import FailureCode, Usage


@dataclass(frozen=True)
class ChatAnswer:
    label: str
    content: str
    model: str
    tokens: tuple[dict[str, Any], ...]
    """`{token, logprob, top_logprobs}` of what was written, where the server gives them."""
    reasoning: str | None
    usage: Usage | None
    truncated: bool = False
    """The question left graded text out."""


def read_answer(said: dict[str, Any], labels: Sequence[str]) -> ChatAnswer:
    """The label is the whole answer, or the one field of the JSON object that it is; nothing near it counts.

    Raises:
        ItemFailed: refused, or parse_error.
    """
    choices = said.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise _no_label("it holds not one choice")
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, dict):
        raise _no_label("it holds no message")
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        raise ItemFailed(FailureCode.REFUSED, "the judge refused to grade")
    if choice.get("finish_reason") != "stop":
        raise _no_label(f"finish_reason {choice.get('finish_reason')!r}")
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        raise _no_label("its content is empty")
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    return ChatAnswer(
        label=_label(content, labels),
        content=content,
        model=str(said.get("model") or ""),
        tokens=tuple(t for t in tokens if isinstance(t, dict)) if isinstance(tokens, list) else (),
        reasoning=reasoning if isinstance(reasoning, str) else None,
        usage=_usage(said.get("usage")),
    )


def label_logprobs(answer: ChatAnswer, labels: Sequence[str]) -> tuple[float, ...]:
    """Log-probabilities of the labels at the place of the answer's own; minus infinity for one that is not
    among the alternatives given.

    Raises:
        ItemFailed: parse_error where there are none, or the label is not in one token with its place.
    """
    texts = [token.get("token") for token in answer.tokens]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise _no_label("no log-probabilities came with it")
    written = "".join(str(text) for text in texts)
    # A reasoning model's tokens may come first, and an end token last.
    at = written.rfind(answer.content)
    if at < 0:
        raise _no_label("its log-probabilities are of another text")
    place = at + answer.content.rindex(answer.label)
    start = 0
    for token, text in zip(answer.tokens, texts, strict=True):
        end = start + len(str(text))
        if start <= place and place + len(answer.label) <= end:
            before, after = str(text)[: place - start], str(text)[place - start + len(answer.label) :]
            return _alternatives(token, [before + label + after for label in labels])
        start = end
    raise _no_label("its label is not one token")


def _alternatives(token: dict[str, Any], wanted: Sequence[str]) -> tuple[float, ...]:
    top = token.get("top_logprobs")
    others = [other for other in top if isinstance(other, dict)] if isinstance(top, list) else []
    if not others:
        raise _no_label("no alternatives came with it")
    found: dict[str, float] = {}
    for other in [*others, token]:
        value = other.get("logprob")
        # A hair above 0 is rounding.
        if not isinstance(value, int | float) or math.isnan(value) or value > 1e-3:
            raise _no_label("its log-probabilities are none")
        found[str(other.get("token"))] = float(value)
    return tuple(found.get(text, -math.inf) for text in wanted)


def _label(content: str, labels: Sequence[str]) -> str:
    bare = content.strip()
    if bare in labels:
        return bare
    try:
        said = json.loads(bare)
    except ValueError as error:
        raise _no_label("it is neither a label nor JSON") from error
    if not isinstance(said, dict) or set(said) != {"label"} or said["label"] not in labels:
        raise _no_label("its JSON is not the schema's")
    return str(said["label"])


def _usage(raw: Any) -> Usage | None:
    counts = [raw.get(key) for key in ("prompt_tokens", "completion_tokens")] if isinstance(raw, dict) else []
    match counts:
        case [int(read), int(written)] if read >= 0 and written >= 0:
            return Usage(prompt_tokens=read, completion_tokens=written)
        case _:
            return None


def _no_label(why: str) -> ItemFailed:
    return ItemFailed(FailureCode.PARSE_ERROR, f"the judge's answer is no label: {why}")
