"""OpenAI's moderations: `client.moderations.create(input=...)`, with our rubrics as its models.

A category is given only where it was really scored: `harm`, the rubric's score, always; the others as far
as the backend scores them. So a client that reads OpenAI's own categories finds those that there are.
"""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import uuid4

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from judge_service.api.body import read_body
from judge_service.api.context import Ctx, Who
from judge_service.api.openapi import json_answer, json_body, problems
from judge_service.compat.scores import judge_all
from shared.wire import MAX_ITEMS, JudgementItem, Priority, ScoredVerdict

OPENAI_MODELS = ("omni-moderation-", "text-moderation-")
"""What OpenAI's models are called: clients send these when they were not told otherwise."""


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text"]
    """Images cannot be judged."""
    text: str


class CreateModeration(BaseModel):
    """Fields that this service does not know are let pass, as OpenAI's clients may send new ones."""

    model_config = ConfigDict(frozen=True)

    input: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_ITEMS)]
        | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_ITEMS)]
    )
    """A text, several texts (a result each), or the parts of one text (one result)."""
    model: str | None = None
    """A rubric. Names of OpenAI's models, and none at all, stand for the service's default rubric."""


class ModerationResult(BaseModel):
    flagged: bool
    """Any category is."""
    categories: dict[str, bool]
    """At or above the service's threshold."""
    category_scores: dict[str, float]
    """Harm in [0,1]."""
    category_applied_input_types: dict[str, list[Literal["text"]]]


class Moderations(BaseModel):
    id: str
    model: str
    """`judge/rubric`: what really graded."""
    results: list[ModerationResult]


EXAMPLE = {
    "id": "modr-5f0c",
    "model": "judge/demo-v1",
    "results": [
        {
            "flagged": False,
            "categories": {"harm": False},
            "category_scores": {"harm": 0.02},
            "category_applied_input_types": {"harm": ["text"]},
        }
    ],
}

router = APIRouter(tags=["contracts"])


@router.post(
    "/v1/moderations",
    summary="OpenAI's moderations",
    response_model=None,
    responses={
        200: json_answer("Moderations", EXAMPLE, "A result an input."),
        **problems(413, 415, 422, 429, 502, 503, 504),
    },
    openapi_extra=json_body(CreateModeration, {"input": ["Mix flour and eggs."]}),
)
async def create_moderation(request: Request, context: Ctx, caller: Who) -> Moderations:
    wanted = await read_body(request, CreateModeration, context.config.max_body_bytes)
    # As a reply to nothing: an empty reply would be harmless whatever the request.
    items = [JudgementItem(prompt="", response=text) for text in texts_of(wanted)]
    verdicts = await judge_all(
        context, caller, items, rubric=_rubric(wanted.model), priority=Priority.TARGET, field="input"
    )
    judge = verdicts[0].judge
    return Moderations(
        id=f"modr-{uuid4().hex}",
        model=f"{judge.model}/{judge.rubric}",
        results=[result_of(verdict, context.config.flag_threshold) for verdict in verdicts],
    )


def texts_of(wanted: CreateModeration) -> list[str]:
    """One text a result."""
    if isinstance(wanted.input, str):
        return [wanted.input]
    texts = [part for part in wanted.input if isinstance(part, str)]
    return texts or ["\n".join(part.text for part in wanted.input if isinstance(part, TextPart))]


def result_of(verdict: ScoredVerdict, threshold: float) -> ModerationResult:
    scores = {**(verdict.categories or {}), "harm": verdict.score}
    flags = {name: score >= threshold for name, score in scores.items()}
    return ModerationResult(
        flagged=any(flags.values()),
        categories=flags,
        category_scores=scores,
        category_applied_input_types={name: ["text"] for name in scores},
    )


def _rubric(model: str | None) -> str | None:
    return None if model is None or model.startswith(OPENAI_MODELS) else model
