"""gpt-oss and gpt-oss-safeguard on vLLM: they reason first, then the label is read in the final channel.

Token-level, so that no parser of the server's stands between: vLLM renders the prompt
(`/v1/chat/completions/render`), the analysis is a plain completion with a budget, and the label's
probabilities are those of the next token after prompt + analysis + the final channel's header.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from judge_service.backends.base import Grade, GradeFailure, GradeRequest
from judge_service.backends.completions import LabelAnswer, ask_labels, go_on, probe_labels, total
from judge_service.backends.pool import BadRequest, ItemFailed, Server, ServerLost
from judge_service.backends.reading import read_grade
from shared.errors import ConfigError
from shared.logs import fields
from shared.rubrics.encoding import MIN_GRADED_TOKENS, PromptIds, chat_text
from shared.rubrics.rubric import ChatPrompt, Rubric, render_chat
from shared.wire import FailureCode, Usage

logger = logging.getLogger(__name__)

RENDER = "/v1/chat/completions/render"
SPECIALS = (
    "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>",
    "<|message|>", "<|call|>",
)  # fmt: skip
FINAL = "<|channel|>final<|message|>"
ANALYSIS = "<|channel|>analysis<|message|>"
SHRINKS = 8


@dataclass(frozen=True)
class HarmonyOptions:
    reasoning: Literal["off", "low", "medium", "high"] = "low"
    """`off`: the label at once, with no analysis. Fast, and less sure."""
    reasoning_tokens: int = 1024
    """Most tokens of an analysis."""
    unfinished: Literal["fail", "close"] = "fail"
    """An analysis that reaches the budget: the item fails, or it ends there and the label is read."""
    label_mass_floor: float = 0.5
    max_tokens: int | None = None
    """Of a prompt; None: what the model's context holds."""


@dataclass(frozen=True)
class HarmonyTokens:
    """Ids that stand for structure, as the server's tokenizer has them."""

    specials: frozenset[int]
    end: int
    stops: tuple[int, ...]
    """What ends an analysis: <|end|>, <|return|>, and <|call|>, of which the last is a fault."""
    call: int
    assistant: tuple[int, ...]
    """<|start|>assistant"""
    analysis: tuple[int, ...]
    final: tuple[int, ...]


@dataclass(frozen=True)
class Harmony:
    model: str
    options: HarmonyOptions
    tokens: HarmonyTokens
    labels: dict[tuple[str, ...], tuple[int, ...]]
    """Labels -> ids."""
    max_prompt: int
    """Tokens of a rendered prompt."""
    own_specials: int
    """Special tokens in a prompt: the chat format's own."""

    async def grade(self, server: Server, request: GradeRequest) -> Grade | GradeFailure:
        answers: list[LabelAnswer] = []
        usages: list[Usage] = []
        thoughts: list[str] = []
        truncated = False
        for question, asked in enumerate(request.rubric.questions):
            rendered = await self.render(server, request, question)
            prompt, truncated = rendered.ids, truncated or rendered.truncated
            if self.options.reasoning != "off":
                prompt, thought, usage = await self._think(server, prompt)
                usages.append(usage)
                thoughts.append(thought)
            ids = [*prompt, *self.tokens.final]
            answers.append(await ask_labels(server, self.model, ids, self.labels[asked.labels]))
        grade = read_grade(
            request.rubric,
            [a.logprobs for a in answers],
            self.options.label_mass_floor,
            truncated=truncated,
        )
        if isinstance(grade, GradeFailure):
            return grade
        usage = total([*usages, *(answer.usage for answer in answers)])
        rationale = "\n\n".join(thoughts) if request.rationale and thoughts else None
        return replace(grade, usage=usage, rationale=rationale)

    async def render(self, server: Server, request: GradeRequest, question: int) -> PromptIds:
        """The prompt's ids, up to `<|start|>assistant`; too long graded texts lose their middles.

        Raises:
            ItemFailed: the graded text became special tokens, or cannot be cut to fit.
        """
        prompt = render_chat(
            request.rubric, request.prompt, request.response, nonce=secrets.token_hex(8), question=question
        )
        # No token of text is longer than its bytes, and few are longer than four characters on average.
        chars = 4 * self.max_prompt
        for _ in range(SHRINKS):
            try:
                cut = chat_text(prompt.user, max_chars=chars)
            except ValueError as error:
                raise ItemFailed(FailureCode.SERVER_ERROR, f"too long for the judge: {error}") from error
            try:
                ids = await _rendered(server, self.model, self.options, prompt, cut.text)
            except BadRequest:
                if len(cut.text.encode()) + MIN_GRADED_TOKENS <= self.max_prompt // 2:
                    raise
                # Too long even to be rendered, most likely.
                chars = min(chars, len(cut.text)) // 2
                continue
            if len(ids) <= self.max_prompt:
                break
            chars = min(chars, len(cut.text)) * self.max_prompt * 9 // (len(ids) * 10)
        else:
            raise ItemFailed(FailureCode.SERVER_ERROR, "too long for the judge, and could not be cut to fit")
        if sum(token in self.tokens.specials for token in ids) != self.own_specials:
            raise ItemFailed(FailureCode.SERVER_ERROR, "the graded text became special tokens")
        return PromptIds(ids, cut.truncated)

    async def _think(self, server: Server, prompt: list[int]) -> tuple[list[int], str, Usage]:
        """The prompt with the analysis after it, up to the next `<|start|>assistant`; its text."""
        tokens = self.tokens
        opened = [*prompt, *tokens.analysis]
        written = await go_on(
            server, self.model, opened, max_tokens=self.options.reasoning_tokens, stop=tokens.stops
        )
        if written.ended_by is None and self.options.unfinished == "fail":
            raise ItemFailed(
                FailureCode.PARSE_ERROR,
                f"finish_reason length: the judge had not finished its analysis after"
                f" {self.options.reasoning_tokens} tokens",
            )
        if written.ended_by == tokens.call or any(token in tokens.specials for token in written.token_ids):
            raise ItemFailed(FailureCode.PARSE_ERROR, "the judge's analysis holds control tokens")
        closed = [*opened, *written.token_ids, tokens.end, *tokens.assistant]
        return closed, written.text.strip(), written.usage


async def open_harmony(
    server: Server, model: str, context: int, options: HarmonyOptions, rubrics: Sequence[Rubric]
) -> Harmony:
    """Raises ConfigError where the server's format is not harmony, or labels cannot be read."""
    tokens = await _structure(server, model)
    wanted = {question.labels for rubric in rubrics for question in rubric.questions}
    labels = {names: await _labels(server, model, names) for names in wanted}
    thinking = 0 if options.reasoning == "off" else options.reasoning_tokens + len(tokens.analysis) + 3
    room = context - thinking - len(tokens.final) - 1
    form = Harmony(model, options, tokens, labels, min(options.max_tokens or room, room), 0)
    for rubric in rubrics:
        for question, asked in enumerate(rubric.questions):
            bare = render_chat(rubric, "", "", nonce="0" * 16, question=question)
            ids = await _rendered_at_start(server, form, bare)
            if ids[-len(tokens.assistant) :] != list(tokens.assistant):
                raise ConfigError(f"{server.url} renders no harmony prompt: it ends with {ids[-4:]}")
            if len(ids) + MIN_GRADED_TOKENS > form.max_prompt:
                raise ConfigError(
                    f"rubric {rubric.name!r} takes {len(ids)} of the {form.max_prompt} tokens that"
                    f" {model!r} has for a prompt (context {context}, analysis {thinking});"
                    f" {MIN_GRADED_TOKENS} more must be left"
                )
            form = replace(form, own_specials=sum(token in tokens.specials for token in ids))
            await probe_labels(server, model, [*ids, *tokens.final], labels[asked.labels])
    await _check_final(server, form)
    return form


async def _rendered(
    server: Server, model: str, options: HarmonyOptions, prompt: ChatPrompt, text: str, answer: str = ""
) -> list[int]:
    messages = [{"role": "system", "content": prompt.instructions}, {"role": "user", "content": text}]
    if answer:
        messages.append({"role": "assistant", "content": answer})
    effort = "low" if options.reasoning == "off" else options.reasoning
    # No tools, ever: they change the format, and its parser fails on them.
    body = {"model": model, "messages": messages, "reasoning_effort": effort, "max_tokens": 1}
    ids = (await server.post(RENDER, body)).get("token_ids")
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        raise ItemFailed(FailureCode.PARSE_ERROR, "the judge's server rendered no token ids")
    return ids


async def _rendered_at_start(
    server: Server, form: Harmony, prompt: ChatPrompt, answer: str = ""
) -> list[int]:
    try:
        return await _rendered(server, form.model, form.options, prompt, chat_text(prompt.user).text, answer)
    except ServerLost as error:
        if error.status not in (403, 404):
            raise
        raise ConfigError(
            f"{error}: gpt-oss needs the prompt's token ids; start vLLM with --enable-scale-out"
        ) from error


async def _structure(server: Server, model: str) -> HarmonyTokens:
    single = {text: await _tokenized(server, model, text) for text in SPECIALS}
    for text, ids in single.items():
        if len(ids) != 1:
            raise ConfigError(f"{model!r} has no token {text} (it is {ids}): not a harmony model")
    one = {text: ids[0] for text, ids in single.items()}
    return HarmonyTokens(
        specials=frozenset(one.values()),
        end=one["<|end|>"],
        stops=(one["<|end|>"], one["<|return|>"], one["<|call|>"]),
        call=one["<|call|>"],
        assistant=tuple(await _tokenized(server, model, "<|start|>assistant")),
        analysis=tuple(await _tokenized(server, model, ANALYSIS)),
        final=tuple(await _tokenized(server, model, FINAL)),
    )


async def _labels(server: Server, model: str, labels: Sequence[str]) -> tuple[int, ...]:
    header = await _tokenized(server, model, FINAL)
    found = []
    for label in labels:
        ids = await _tokenized(server, model, FINAL + label)
        if ids[:-1] != header:
            raise ConfigError(f"label {label!r} is not one token in the final channel of {model!r}: {ids}")
        found.append(ids[-1])
    if len(set(found)) != len(labels):
        raise ConfigError(f"the labels {', '.join(labels)} of {model!r} have the ids {found}: not distinct")
    return tuple(found)


async def _tokenized(server: Server, model: str, text: str) -> list[int]:
    body = {"model": model, "prompt": text, "add_special_tokens": False}
    ids = (await server.post("/tokenize", body)).get("tokens")
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        raise ItemFailed(FailureCode.PARSE_ERROR, "the judge's server answered no tokens to /tokenize")
    return ids


async def _check_final(server: Server, form: Harmony) -> None:
    """The format that renders prompts must be the one that the labels were resolved in."""
    hello = ChatPrompt("Grade.", ())
    for names, ids in form.labels.items():
        rendered = await _rendered_at_start(server, form, hello, names[0])
        expected = [*form.tokens.final, ids[0], form.tokens.end, *form.tokens.assistant]
        if rendered[-len(expected) :] != expected:
            raise ConfigError(
                f"{server.url} tokenizes and renders in different formats: a final answer ends with"
                f" {rendered[-len(expected) :]}, expected {expected}"
            )
    first = await _rendered_at_start(server, form, hello)
    said = await server.post("/detokenize", {"model": form.model, "tokens": first})
    if f"Current date: {time.strftime('%Y-%m-%d')}" in str(said.get("prompt")):
        logger.warning(
            "the judge's prompts hold today's date, so scores drift by the day;"
            " start vLLM with VLLM_SYSTEM_START_DATE=2025-01-01",
            extra=fields(url=server.url),
        )
