"""The judge's wire types: what a client sends, what a verdict says.

A failure is a state, never a number: a verdict is `scored` and carries a score, or `failed` and
carries a code. Nothing here has a default score.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_ITEMS = 256
"""Most items in one submission or one batch read."""

MAX_WAIT_S = 30.0
"""Longest long poll."""

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,199}$"
"""An id is part of a Redis key and of a URL path."""


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Priority(StrEnum):
    """One stream each, read in this order: a policy reading gates a training step."""

    POLICY = "policy"
    TARGET = "target"
    EVALUATION = "evaluation"


class ScoreKind(StrEnum):
    """How a score came about. One job never mixes kinds."""

    LABEL_PROBABILITY = "label_probability"
    SAMPLED = "sampled"
    CLASSIFIER = "classifier"
    RULES = "rules"


class FailureCode(StrEnum):
    PARSE_ERROR = "parse_error"  # the judge answered, but not with a label
    REFUSED = "refused"  # the judge declined to grade
    SERVER_ERROR = "server_error"  # the backend broke, or a dead letter
    TIMEOUT = "timeout"
    OVERLOADED = "overloaded"
    EXPIRED = "expired"  # older than its expires_at before anybody looked
    UNTRUSTED = "untrusted"  # the judge failed its control pairs


class ChatMessage(Wire):
    role: Literal["system", "user", "assistant"]
    content: str


class JudgementItem(Wire):
    """One (prompt, response) pair. A conversation is graded whole: give its turns as `prompt`."""

    id: str | None = Field(default=None, pattern=ID_PATTERN)
    """Idempotency: the same id and text again is the same judgement. Absent: the service makes one."""
    prompt: str | list[ChatMessage]
    response: str


class SubmitJudgements(Wire):
    items: list[JudgementItem] = Field(min_length=1, max_length=MAX_ITEMS)
    rubric: str
    """Name of a rubric that the service ships or was given, such as `demo-v1`."""
    priority: Priority = Priority.TARGET
    expires_at: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Unix seconds; an item that no worker has begun by then, or that would not be done by then, judging
    taking as long as it lately does, ends `failed: expired`."""
    group: str | None = Field(default=None, pattern=ID_PATTERN)
    """`DELETE /v1/judgements?group=` cancels what is still queued under it. A job's id, say."""
    wait_s: float = Field(default=0.0, ge=0, le=MAX_WAIT_S, allow_inf_nan=False)
    """Long poll: answer when all are done, or after this many seconds."""
    rationale: bool = False
    """Ask for the judge's reasons, which takes longer where the backend has to write them."""

    @model_validator(mode="after")
    def _ids_are_distinct(self) -> SubmitJudgements:
        seen: set[str] = set()
        for index, item in enumerate(self.items):
            if item.id is None:
                continue
            if item.id in seen:
                raise ValueError(f"items[{index}].id {item.id!r} occurs twice in this batch")
            seen.add(item.id)
        return self


class ReadJudgements(Wire):
    """A batch read. With `wait_s` it answers as soon as *any* pending id becomes terminal."""

    ids: list[str] = Field(min_length=1, max_length=MAX_ITEMS)
    wait_s: float = Field(default=0.0, ge=0, le=MAX_WAIT_S, allow_inf_nan=False)


class JudgeInfo(Wire):
    kind: str
    """Name of the backend: `transformers`, `vllm`, ..."""
    model: str
    revision: str | None = None
    """Of the model, where the backend can tell."""
    rubric: str
    rubric_hash: str
    score_kind: ScoreKind


class Usage(Wire):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class Timings(Wire):
    queue_ms: float = Field(ge=0)
    judge_ms: float = Field(ge=0)


class VerdictError(Wire):
    code: FailureCode
    message: str


class ScoredVerdict(Wire):
    id: str
    status: Literal["scored"] = "scored"
    score: float = Field(ge=0, le=1, allow_inf_nan=False)
    """Harm in [0,1]: `(sum k*p_k - 1) / 4` over the labels k = 1..5, or as the rubric's scale says."""
    level: int | None = Field(default=None, ge=1, le=5)
    """The likeliest label 1..5. None where the rubric or the backend has no levels."""
    probabilities: list[float] | None = Field(default=None, min_length=5, max_length=5)
    """Of the labels 1..5, renormalised. None where the rubric or the backend has no levels."""
    label_mass: float | None = Field(default=None, ge=0, le=1.0001)
    """Probability that the judge gave to the labels together, before renormalising."""
    spread: float | None = Field(default=None, ge=0)
    """Standard deviation of the samples that the score is the mean of; `sampled` only."""
    categories: dict[str, float] | None = None
    """Harm in [0,1] of those categories that were really scored."""
    rationale: str | None = None
    """The judge's reasons, where they were asked for and the backend has any."""
    usage: Usage | None = None
    """Tokens that this verdict cost, where the backend counts them. Of a cached one: what it cost then."""
    empty: bool = False
    """The response was empty: harmless, and no judge was asked."""
    truncated: bool = False
    """The text was longer than the judge reads: its middle was left out, and nothing is said of it."""
    judge: JudgeInfo
    cached: bool = False
    suspect: bool = False
    """The judge failed its control pairs after this verdict and before any later good ones."""
    error: None = None
    timings: Timings


class FailedVerdict(Wire):
    id: str
    status: Literal["failed"] = "failed"
    score: None = None
    level: None = None
    probabilities: None = None
    label_mass: None = None
    judge: JudgeInfo | None = None
    cached: Literal[False] = False
    suspect: Literal[False] = False
    error: VerdictError
    timings: Timings


class PendingVerdict(Wire):
    id: str
    status: Literal["pending"] = "pending"


Verdict = Annotated[ScoredVerdict | FailedVerdict, Field(discriminator="status")]
"""Terminal: it never changes again."""

Judgement = Annotated[ScoredVerdict | FailedVerdict | PendingVerdict, Field(discriminator="status")]


class JudgementList(Wire):
    object: Literal["list"] = "list"
    items: list[Judgement]
    """In the order of the request."""


class Suspects(BaseModel):
    """Verdicts of a group whose judge failed its control pairs after them."""

    object: Literal["list"] = "list"
    group: str
    ids: list[str]


class Problem(BaseModel):
    """RFC 9457, `application/problem+json`."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: list[dict[str, object]] | None = None
    """One entry per wrong field: `{"field", "message"}`."""


def content_hash(prompt: str | list[ChatMessage], response: str) -> str:
    """sha256 over the graded text, the roles included; 64 hex digits."""
    digest = hashlib.sha256()
    turns = prompt if isinstance(prompt, list) else [ChatMessage(role="user", content=prompt)]
    for turn in [*turns, ChatMessage(role="assistant", content=response)]:
        for part in (turn.role, turn.content):
            raw = part.encode("utf-8", "surrogatepass")
            # Length first, or ("ab", "c") and ("a", "bc") would hash alike.
            digest.update(len(raw).to_bytes(8, "big"))
            digest.update(raw)
    return digest.hexdigest()
