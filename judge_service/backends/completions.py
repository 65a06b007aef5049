"""What `/v1/completions` on token ids is asked and answers, token by token.

Every field is checked: a server that ignores an option, or answers from another model, must not make a
number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from judge_service.backends.pool import ItemFailed, Server
from shared.errors import ConfigError
from shared.wire import FailureCode, Usage

PATH = "/v1/completions"


@dataclass(frozen=True)
class LabelAnswer:
    logprobs: tuple[float, ...]
    """Of the labels asked for, in their order."""
    usage: Usage


@dataclass(frozen=True)
class Continuation:
    token_ids: tuple[int, ...]
    """Without the token that ended it."""
    text: str
    ended_by: int | None
    """The stop token; None: it was cut at the budget."""
    usage: Usage


async def ask_labels(server: Server, model: str, prompt: Sequence[int], labels: Sequence[int]) -> LabelAnswer:
    """Log-probabilities of the labels right after the prompt.

    Raises:
        ItemFailed: parse_error where a label's is missing or is none; untrusted where another model answered.
    """
    body = {
        **_common(model, prompt),
        "max_tokens": 1,
        "logprobs": 1,
        "logprob_token_ids": list(labels),
        # `token_id:16` for keys: texts of different tokens may be the same.
        "return_tokens_as_token_ids": True,
    }
    said = await server.post(PATH, body)
    choice, usage = _choice(server, said, model, prompt)
    return LabelAnswer(_label_logprobs(choice, labels), usage)


async def probe_labels(server: Server, model: str, prompt: Sequence[int], labels: Sequence[int]) -> None:
    """Raises ConfigError where the server does not give the labels' log-probabilities."""
    try:
        await ask_labels(server, model, prompt, labels)
    except ItemFailed as error:
        raise ConfigError(
            f"{server.url} does not give the log-probabilities of named tokens ({error}); the vllm backend"
            " needs a vLLM that knows logprob_token_ids, or use the openai backend"
        ) from error


async def go_on(
    server: Server, model: str, prompt: Sequence[int], *, max_tokens: int, stop: Sequence[int]
) -> Continuation:
    """What the model writes after the prompt, until a stop token or the budget.

    Raises:
        ItemFailed: parse_error where the answer has no tokens; untrusted where another model answered.
    """
    body = {
        **_common(model, prompt),
        "max_tokens": max_tokens,
        "stop_token_ids": list(stop),
        "return_token_ids": True,
    }
    said = await server.post(PATH, body)
    choice, usage = _choice(server, said, model, prompt)
    ids, text, reason = choice.get("token_ids"), choice.get("text"), choice.get("finish_reason")
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        raise _no_answer("no token ids")
    if not isinstance(text, str):
        raise _no_answer("no text")
    if reason == "length":
        return Continuation(tuple(ids), text, None, usage)
    if reason != "stop":
        raise _no_answer(f"finish_reason {reason!r}")
    stopped_by = choice.get("stop_reason")
    if ids and (ids[-1] in stop or ids[-1] == stopped_by):
        return Continuation(tuple(ids[:-1]), text, ids[-1], usage)
    if isinstance(stopped_by, int):
        return Continuation(tuple(ids), text, stopped_by, usage)
    raise _no_answer("it stopped, but at no stop token")


def _common(model: str, prompt: Sequence[int]) -> dict[str, Any]:
    # Never ignore_eos: it breaks what the model ends by itself.
    return {"model": model, "prompt": list(prompt), "temperature": 0, "n": 1, "stream": False}


def _choice(
    server: Server, said: dict[str, Any], model: str, prompt: Sequence[int]
) -> tuple[dict[str, Any], Usage]:
    if said.get("model") != model:
        raise ItemFailed(
            FailureCode.UNTRUSTED, f"model {said.get('model')!r} answered where {model!r} was asked"
        )
    fingerprint = said.get("system_fingerprint")
    if isinstance(fingerprint, str):
        server.fingerprint = fingerprint
    choices, raw = said.get("choices"), said.get("usage")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise _no_answer("not one choice")
    counts = [raw.get(key) for key in ("prompt_tokens", "completion_tokens")] if isinstance(raw, dict) else []
    match counts:
        case [int(read), int(written)]:
            if read != len(prompt):
                message = f"the judge read {read} tokens of a prompt of {len(prompt)}"
                raise ItemFailed(FailureCode.SERVER_ERROR, message)
            return choices[0], Usage(prompt_tokens=read, completion_tokens=written)
        case _:
            raise _no_answer("no usage")


def _label_logprobs(choice: dict[str, Any], labels: Sequence[int]) -> tuple[float, ...]:
    logprobs = choice.get("logprobs")
    steps = logprobs.get("top_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(steps, list) or len(steps) != 1 or not isinstance(steps[0], dict):
        raise _no_answer("no log-probabilities")
    found = [steps[0].get(f"token_id:{label}") for label in labels]
    missing = [label for label, value in zip(labels, found, strict=True) if value is None]
    if missing:
        raise _no_answer(f"no log-probability for label ids {missing}")
    values = [float(value) for value in found if isinstance(value, int | float)]
    # A hair above 0 is rounding.
    if len(values) != len(labels) or any(math.isnan(v) or v > 1e-3 for v in values):
        raise _no_answer("values that are no log-probabilities")
    return tuple(values)


def _no_answer(what: str) -> ItemFailed:
    return ItemFailed(FailureCode.PARSE_ERROR, f"the judge's answer holds {what}")


def total(usages: Sequence[Usage]) -> Usage:
    """Over all requests of an item. What the server's prefix cache spared it counts in full."""
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
    )
