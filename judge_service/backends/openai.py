"""Any server that speaks OpenAI's chat completions.

It answers by a JSON schema whose only field is the label. Where the server gives log-probabilities, the
label's alternatives at its place in the answer make the score; else, if the operator asked for it, the mean
over n samples does, with its spread.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from judge_service.backends.arrival import first_there, run_apart
from judge_service.backends.base import BackendInfo, Grade, GradeFailure, GradeRequest
from judge_service.backends.chat_answers import ChatAnswer, label_logprobs, read_answer
from judge_service.backends.completions import total
from judge_service.backends.pool import BadRequest, ItemFailed, Pool, PoolOptions, Server, ServerLost
from judge_service.backends.reading import read_grade
from shared.errors import ConfigError
from shared.rubrics.encoding import chat_text
from shared.rubrics.rubric import LabelReading, Question, Rubric, Scale, read_rubric, render_chat
from shared.wire import FailureCode, ScoreKind

PATH = "/v1/chat/completions"
TOP = 20
"""Alternatives asked for at each token: the most that OpenAI gives."""

USUAL_BATCH = 32


@dataclass(frozen=True)
class OpenAIOptions:
    pool: PoolOptions
    model: str
    rubrics: tuple[Rubric, ...]
    name: str | None = None
    """As verdicts call it; None: as the server does."""
    samples: int | None = None
    """Where no log-probabilities come: so many answers are drawn and averaged. None: refuse to start."""
    label_mass_floor: float = 0.5
    max_output_tokens: int = 512
    max_chars: int = 48_000
    """Of the graded text and what stands around it; the server's tokens are not known here."""
    boot_s: float = 900.0


@dataclass(frozen=True)
class Ability:
    """What was found out about the server when the backend opened."""

    schema: bool
    """It takes a JSON schema."""
    logprobs: bool
    model: str
    """As its answers call it, which may be more exact than what was asked for."""


class OpenAIBackend:
    def __init__(
        self, options: OpenAIOptions, ability: Ability, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._options = options
        self._ability = ability
        self._pool = Pool(options.pool, _admit, transport)

    @property
    def info(self) -> BackendInfo:
        kind = ScoreKind.LABEL_PROBABILITY if self._ability.logprobs else ScoreKind.SAMPLED
        places = self._options.pool.in_flight * len(self._pool.servers)
        return BackendInfo(
            kind="openai",
            model=self._options.name or self._options.model,
            score_kind=kind,
            concurrency=places // USUAL_BATCH + 1,
            revision=self._ability.model,
        )

    async def judge(self, batch: Sequence[GradeRequest]) -> list[Grade | GradeFailure]:
        answers = await asyncio.gather(*(self._grade(request) for request in batch), return_exceptions=True)
        done: list[Grade | GradeFailure] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            done.append(answer)
        return done

    async def close(self) -> None:
        await self._pool.close()

    async def _grade(self, request: GradeRequest) -> Grade | GradeFailure:
        by = by_labels if self._ability.logprobs else by_samples
        try:
            return await self._pool.run(lambda server: by(server, self._options, self._ability, request))
        except ItemFailed as error:
            return error.failure


async def by_labels(
    server: Server, options: OpenAIOptions, ability: Ability, request: GradeRequest
) -> Grade | GradeFailure:
    """The score from the probabilities of the labels."""
    answers = [
        await ask(server, options, ability, request, question, temperature=0)
        for question in range(len(request.rubric.questions))
    ]
    asked = zip(answers, request.rubric.questions, strict=True)
    rows = [label_logprobs(answer, question.labels) for answer, question in asked]
    return _with_costs(
        read_grade(request.rubric, rows, options.label_mass_floor, truncated=False), answers, request
    )


async def by_samples(
    server: Server, options: OpenAIOptions, ability: Ability, request: GradeRequest
) -> Grade | GradeFailure:
    """The mean over samples, all of which must be answers: one that failed is not left out of it."""
    rubric, count = request.rubric, options.samples or 1

    async def sample(seed: int) -> list[ChatAnswer]:
        return [
            await ask(server, options, ability, request, question, temperature=1, seed=seed)
            for question in range(len(rubric.questions))
        ]

    drawn = await asyncio.gather(*(sample(seed) for seed in range(count)))
    scores = [read_rubric(rubric, _certain(rubric.questions, answers)).score for answers in drawn]
    level = None
    if rubric.scale is Scale.HARM_LEVELS:
        counts = Counter(int(answers[0].label) for answers in drawn)
        # Of those drawn equally often, the most harmful.
        level = max(counts, key=lambda label: (counts[label], label))
    grade = Grade(statistics.fmean(scores), level, spread=statistics.pstdev(scores))
    return _with_costs(grade, [answer for answers in drawn for answer in answers], request)


def _certain(questions: Sequence[Question], answers: Sequence[ChatAnswer]) -> list[LabelReading]:
    return [
        LabelReading(tuple(float(label == answer.label) for label in question.labels), 1.0)
        for question, answer in zip(questions, answers, strict=True)
    ]


def _with_costs(
    grade: Grade | GradeFailure, answers: Sequence[ChatAnswer], request: GradeRequest
) -> Grade | GradeFailure:
    if isinstance(grade, GradeFailure):
        return grade
    usages = [answer.usage for answer in answers if answer.usage is not None]
    thoughts = [answer.reasoning for answer in answers if answer.reasoning]
    return replace(
        grade,
        usage=total(usages) if len(usages) == len(answers) else None,
        rationale="\n\n".join(thoughts) if request.rationale and thoughts else None,
        truncated=any(answer.truncated for answer in answers),
    )


async def ask(
    server: Server,
    options: OpenAIOptions,
    ability: Ability,
    request: GradeRequest,
    question: int,
    *,
    temperature: float,
    seed: int = 0,
) -> ChatAnswer:
    """One answer to one of the rubric's questions.

    Raises:
        ItemFailed: parse_error, refused, or untrusted where another model answered.
        BadRequest, ServerLost: as `Server.post`.
    """
    prompt = render_chat(
        request.rubric, request.prompt, request.response, nonce=secrets.token_hex(8), question=question
    )
    try:
        text = chat_text(prompt.user, max_chars=options.max_chars)
    except ValueError as error:
        raise ItemFailed(FailureCode.SERVER_ERROR, f"too long for the judge: {error}") from error
    labels = request.rubric.questions[question].labels
    form = answer_form(ability, labels)
    messages = [
        {"role": "system", "content": prompt.instructions},
        {"role": "user", "content": f"{text.text}\n\nAnswer with {form}."},
    ]
    said = await server.post(PATH, chat_body(options, ability, messages, labels, temperature, seed))
    model = said.get("model")
    if ability.model and model != ability.model:
        message = f"model {model!r} answered where {ability.model!r} did at the start"
        raise ItemFailed(FailureCode.UNTRUSTED, message)
    return replace(read_answer(said, labels), truncated=text.truncated)


def answer_form(ability: Ability, labels: Sequence[str]) -> str:
    choices = " or ".join(f'"{label}"' for label in labels)
    return f'JSON, {{"label": L}}, where L is {choices}' if ability.schema else f"{choices}, nothing else"


def chat_body(
    options: OpenAIOptions,
    ability: Ability,
    messages: Sequence[dict[str, str]],
    labels: Sequence[str],
    temperature: float,
    seed: int,
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": options.model,
        "messages": list(messages),
        "temperature": temperature,
        "seed": seed,
        "max_completion_tokens": options.max_output_tokens,
        "n": 1,
        "stream": False,
    }
    if ability.logprobs:
        body |= {"logprobs": True, "top_logprobs": TOP}
    if ability.schema:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "grade", "strict": True, "schema": label_schema(labels)},
        }
    return body


def label_schema(labels: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": list(labels)}},
        "required": ["label"],
        "additionalProperties": False,
    }


def open_openai(options: OpenAIOptions, transport: httpx.AsyncBaseTransport | None = None) -> OpenAIBackend:
    """Waits until a server is there, and finds out what it can.

    Raises:
        ConfigError: it gives no log-probabilities and `samples` is not set, or does not answer by labels.
        ServiceError: no server came up in time.
    """
    return OpenAIBackend(options, run_apart(_open(options, transport)), transport)


async def _open(options: OpenAIOptions, transport: httpx.AsyncBaseTransport | None) -> Ability:
    pool = Pool(options.pool, _admit, transport)
    try:
        server = await first_there(pool, "/v1/models", options.boot_s)
        why: list[str] = []
        for schema, logprobs in ((True, True), (False, True), (True, False), (False, False)):
            if not logprobs and options.samples is None:
                continue
            found = await _try(server, options, Ability(schema, logprobs, ""))
            if isinstance(found, Ability):
                return found
            why.append(f"{'with' if schema else 'without'} a schema: {found}")
    finally:
        await pool.close()
    remedy = "" if options.samples else "; --samples 5 averages so many answers where none come"
    raise ConfigError(
        f"the judge {options.model!r} at {server.url} gives no labels, or no log-probabilities of them"
        f" ({'; '.join(why)}){remedy}"
    )


async def _try(server: Server, options: OpenAIOptions, ability: Ability) -> Ability | str:
    """The same with the model's name, if all questions are answered like that; else why not."""
    model = ""
    try:
        async with asyncio.timeout(options.pool.timeout_s):
            for rubric in options.rubrics:
                for question, asked in enumerate(rubric.questions):
                    hello = GradeRequest(rubric, "Hello.", "Hello.")
                    answer = await ask(server, options, ability, hello, question, temperature=0)
                    model = answer.model
                    if ability.logprobs:
                        label_logprobs(answer, asked.labels)
    except BadRequest as error:
        return f"{error}: {error.detail[:200]}"
    except (ItemFailed, ServerLost) as error:
        return str(error)
    except TimeoutError:
        return f"no answer within {options.pool.timeout_s:g} s"
    return replace(ability, model=model)


async def _admit(server: Server) -> None:
    await server.get("/v1/models")
