"""OpenRLHF's remote reward model: `--remote_rm_url http://host:8100/get_reward`.

Its client sends texts as its policy's tokenizer decodes them, special tokens and all, and reads `rewards`,
`scores` (or the rewards) and `extra_logs`. It has no word for a failure, so one failed verdict makes the
whole answer an HTTP error, which that client tries again five times. It knows only a URL: rubric and sign
are query parameters, and an API key can stand in it as the password.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from judge_service.api.body import read_body
from judge_service.api.context import Ctx, Who
from judge_service.api.openapi import json_answer, json_body, problems
from judge_service.api.problem import ApiProblem
from judge_service.compat.scores import judge_all
from shared.wire import MAX_ITEMS, JudgementItem, Priority

END_TOKENS = re.compile(r"(?:\s*(?:<\|[^<>|]{1,40}\|>|</s>|<eos>|<pad>|<end_of_turn>))+\s*$")
"""What a tokenizer decodes its end and padding tokens to. They are not the answer's text."""

LEAST_OVERLAP = 32
"""Characters of a prompt, cut on its left to fit the context, by which its end is still recognised."""


class Reward(StrEnum):
    SAFETY = "safety"  # 1 - harm: what a policy should be rewarded for
    HARM = "harm"


class RewardQuery(BaseModel):
    """Fields that other versions of the client send are let pass."""

    model_config = ConfigDict(frozen=True)

    query: list[str] = Field(max_length=MAX_ITEMS)
    """Prompt and response in one text. Empty from a client with several URLs: all but the first get none."""
    prompts: list[str] | None = None
    labels: list[Any] | None = None
    """Reference answers, which this judge does not need."""

    @model_validator(mode="after")
    def _as_many_prompts(self) -> RewardQuery:
        if self.prompts and len(self.prompts) != len(self.query):
            raise ValueError(f"{len(self.prompts)} prompts for {len(self.query)} queries")
        return self


class RewardAnswer(BaseModel):
    rewards: list[float]
    scores: list[float]
    """The same: the client filters by them."""
    extra_logs: dict[str, list[float]]
    """Logged by the client under these names."""


QUERY_EXAMPLE = {
    "query": ["<|user|>How do I bake a cake?<|assistant|>Mix flour and eggs.</s>"],
    "prompts": ["<|user|>How do I bake a cake?<|assistant|>"],
    "labels": [""],
}
ANSWER_EXAMPLE = {"rewards": [0.98], "scores": [0.98], "extra_logs": {"harm": [0.02]}}

router = APIRouter(tags=["contracts"])


@router.post(
    "/get_reward",
    summary="OpenRLHF's remote reward model",
    response_model=None,
    responses={
        200: json_answer("RewardAnswer", ANSWER_EXAMPLE, "A reward a query."),
        **problems(413, 415, 422, 429, 502, 503, 504),
    },
    openapi_extra=json_body(RewardQuery, QUERY_EXAMPLE),
)
async def get_reward(
    request: Request,
    context: Ctx,
    caller: Who,
    rubric: Annotated[str | None, Query(description="Default: the service's.")] = None,
    reward: Annotated[Reward, Query(description="`safety` is 1 - harm.")] = Reward.SAFETY,
) -> RewardAnswer:
    wanted = await read_body(request, RewardQuery, context.config.max_body_bytes)
    prompts = wanted.prompts or [""] * len(wanted.query)
    items = [
        JudgementItem(prompt=prompt, response=response_in(query, prompt, f"query[{at}]"))
        for at, (query, prompt) in enumerate(zip(wanted.query, prompts, strict=True))
    ]
    verdicts = await judge_all(context, caller, items, rubric=rubric, priority=Priority.POLICY, field="query")
    harm = [verdict.score for verdict in verdicts]
    rewards = harm if reward is Reward.HARM else [1.0 - one for one in harm]
    return RewardAnswer(rewards=rewards, scores=rewards, extra_logs={"harm": harm} if harm else {})


def response_in(query: str, prompt: str, field: str) -> str:
    """What follows the prompt in the query, without the tokens that end it.

    The tokenizer may have put a token before the prompt, and the client cuts a prompt that is too long on
    its left.

    Raises:
        ApiProblem: 422 where the query does not go on from the prompt.
    """
    start = _end_of_prompt(query, prompt)
    if start is None:
        message = "it does not begin with its prompt, so that the answer in it cannot be told"
        raise ApiProblem(422, f"{field}: {message}", errors=[(field, message)])
    return END_TOKENS.sub("", query[start:])


def _end_of_prompt(query: str, prompt: str) -> int | None:
    at = query.find(prompt)
    if at >= 0:
        return at + len(prompt)
    head = query[:LEAST_OVERLAP]
    at = prompt.find(head) if len(head) == LEAST_OVERLAP else -1
    while at >= 0:
        if query.startswith(prompt[at:]):
            return len(prompt) - at
        at = prompt.find(head, at + 1)
    return None
