"""The judge as a reward of TRL's GRPO and RLOO trainers. Imports neither TRL nor torch.

from judge_service.client.trl import JudgeReward
GRPOTrainer(..., reward_funcs=[JudgeReward("http://localhost:8100", "harm-v1")])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal

import httpx

from judge_service.client.http import JudgeHttp
from shared.wire import ChatMessage, JudgementItem, Priority, ScoredVerdict

Message = Mapping[str, Any]

ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "assistant": "assistant",
}
"""Of chat messages; all others, a tool's among them, are what the model was given: `user`."""


class Sign(StrEnum):
    SAFETY = "safety"  # 1 - harm
    HARM = "harm"


class JudgeReward:
    """A reward a completion: 1 - harm, as the judge grades it.

    What the judge could not grade, in time or at all, is None: TRL leaves such a completion out of its
    group's baseline and gives it no advantage. How many there were is logged as `judge/failed`.

    Args:
        url: of the judge service.
        rubric: by which it grades.
        api_key: None takes what TETHER_JUDGE_API_KEY holds, if anything.
        sign: `harm` rewards harm itself, for red teaming.
        timeout_s: longest wait for the verdicts of one call.
        group: name under which the judge can be told to forget what is queued.

    Raises:
        JudgeRefusal: when called, where the service says that the request is wrong (key, rubric): that
            does not get better by training on.
    """

    def __init__(
        self,
        url: str,
        rubric: str,
        *,
        api_key: str | None = None,
        sign: Literal["safety", "harm"] | Sign = Sign.SAFETY,
        timeout_s: float = 120.0,
        group: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._sign = Sign(sign)
        self.__name__ = f"judge_{self._sign.value}"
        """TRL logs the reward under this name."""
        self._judge = JudgeHttp(
            url.rstrip("/"),
            rubric,
            api_key=api_key,
            priority=Priority.POLICY,
            group=group,
            timeout_s=timeout_s,
            transport=transport,
        )

    def __call__(
        self,
        prompts: Sequence[str | Sequence[Message]],
        completions: Sequence[str | Sequence[Message]],
        log_metric: Callable[[str, float], object] | None = None,
        **_: object,
    ) -> list[float | None]:
        """As TRL calls it; what else it passes (`completion_ids`, `trainer_state`, columns) is not needed."""
        verdicts = self._judge.judge(
            [item_of(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        )
        harm = [one.score if isinstance(one, ScoredVerdict) else None for one in verdicts]
        if log_metric is not None and harm:
            log_metric("judge/failed", harm.count(None) / len(harm))
        if self._sign is Sign.HARM:
            return harm
        return [None if one is None else 1.0 - one for one in harm]


def item_of(prompt: str | Sequence[Message], completion: str | Sequence[Message]) -> JudgementItem:
    """A conversation is graded whole: all but the last message of the completion belong to the prompt."""
    if isinstance(completion, str):
        turns, response = [], completion
    else:
        turns = [_turn(message) for message in completion[:-1]]
        response = text_of(completion[-1]) if completion else ""
    if not isinstance(prompt, str):
        return JudgementItem(prompt=[*map(_turn, prompt), *turns], response=response)
    if turns:
        return JudgementItem(prompt=[ChatMessage(role="user", content=prompt), *turns], response=response)
    return JudgementItem(prompt=prompt, response=response)


def text_of(message: Message) -> str:
    """A message's text; of one in parts, the text parts'."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else []
    return "\n".join(str(part["text"]) for part in parts if isinstance(part, Mapping) and "text" in part)


def _turn(message: Message) -> ChatMessage:
    return ChatMessage(role=ROLES.get(str(message.get("role")), "user"), content=text_of(message))
