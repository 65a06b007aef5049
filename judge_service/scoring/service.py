"""A running judge service as the one who grades, over REST."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

import httpx
from pydantic import BaseModel, ValidationError

from judge_service.scoring.judge import Item
from shared.errors import JudgeRefusal, JudgeUnavailable
from shared.wire import (
    FailedVerdict,
    JudgementItem,
    JudgementList,
    Priority,
    ReadJudgements,
    ScoredVerdict,
    SubmitJudgements,
)

LONG_POLL_S = 20.0
REQUEST_TIMEOUT_S = 15.0
"""Beyond the long poll."""
BACKOFF_S = (0.2, 10.0)
"""First and longest pause after a failed request; doubled in between."""


class ServiceJudge:
    """Args:
    patience_s: how long one batch may go without any news before the run gives up.
    transport: httpx's seam, for tests.
    """

    batch_size = 64
    concurrency = 8

    def __init__(
        self,
        url: str,
        rubric: str,
        *,
        api_key: str | None,
        patience_s: float,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.name = url.rstrip("/")
        self._rubric = rubric
        self._patience_s = patience_s
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.AsyncClient(base_url=self.name, headers=headers, transport=transport)

    async def prepare(self) -> None:
        """The service tries its judges itself, all the time."""

    async def judge(self, batch: Sequence[Item]) -> list[ScoredVerdict | FailedVerdict]:
        verdicts: dict[str, ScoredVerdict | FailedVerdict] = {}
        until = time.monotonic() + self._patience_s
        pause_s, submitted = BACKOFF_S[0], False
        while missing := [item for item in batch if item.id not in verdicts]:
            had = len(verdicts)
            try:
                if submitted:
                    found = await self._read([item.id for item in missing])
                else:
                    found = await self._submit(missing)
                submitted = found is not None  # else it lost them: the ids are idempotent
                for judgement in found.items if found is not None else ():
                    if isinstance(judgement, ScoredVerdict | FailedVerdict):
                        verdicts[judgement.id] = judgement
                pause_s = BACKOFF_S[0]
            except _Later as later:
                if time.monotonic() >= until:
                    raise JudgeUnavailable(f"{later}; the same command goes on from here") from later
                await asyncio.sleep(later.after_s or pause_s * random.uniform(0.5, 1))
                pause_s = min(BACKOFF_S[1], pause_s * 2)
                continue
            if len(verdicts) > had:
                until = time.monotonic() + self._patience_s
            elif time.monotonic() >= until:
                raise JudgeUnavailable(
                    f"{self.name} gave no verdict in {self._patience_s:g} s: is a worker up that grades by"
                    f" {self._rubric!r}? The same command goes on from here"
                )
        return [verdicts[item.id] for item in batch]

    async def close(self) -> None:
        await self._http.aclose()

    async def _submit(self, items: Sequence[Item]) -> JudgementList | None:
        body = SubmitJudgements(
            items=[JudgementItem(id=item.id, prompt=item.prompt, response=item.response) for item in items],
            rubric=self._rubric,
            priority=Priority.EVALUATION,
            wait_s=LONG_POLL_S,
        )
        return self._parsed(await self._post("/v1/judgements", body))

    async def _read(self, ids: list[str]) -> JudgementList | None:
        """None: it does not know some of them."""
        response = await self._post(
            "/v1/judgements/read", ReadJudgements(ids=ids, wait_s=LONG_POLL_S), frozenset({404})
        )
        return None if response.status_code == 404 else self._parsed(response)

    async def _post(
        self, path: str, body: BaseModel, expected: frozenset[int] = frozenset()
    ) -> httpx.Response:
        try:
            response = await self._http.post(
                path, json=body.model_dump(mode="json"), timeout=LONG_POLL_S + REQUEST_TIMEOUT_S
            )
        except httpx.TransportError as error:
            raise _Later(f"no answer from {self.name}: {error or type(error).__name__}") from error
        told = f"{self.name} answered POST {path} with {response.status_code}: {response.text[:300]}"
        if response.status_code == 429 or response.status_code >= 500:
            raise _Later(told, _retry_after(response))
        if response.status_code >= 400 and response.status_code not in expected:
            raise JudgeRefusal(told)
        return response

    def _parsed(self, response: httpx.Response) -> JudgementList:
        try:
            return JudgementList.model_validate_json(response.content)
        except ValidationError as error:
            raise JudgeRefusal(
                f"{self.name} answered with no judgements ({error.errors()[0]['msg']}); is it a judge?"
            ) from error


class _Later(Exception):
    """It may go better later."""

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds; None where the header is absent or a date."""
    value = response.headers.get("retry-after", "")
    return min(60.0, float(value)) if value.isdecimal() else None
