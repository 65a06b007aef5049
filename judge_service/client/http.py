"""A plain client of the judge service: items in, verdicts out. Needs httpx and pydantic, nothing else."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

import httpx
from pydantic import BaseModel, ValidationError

from shared.errors import JudgeRefusal, JudgeUnavailable
from shared.judge_key import judge_headers
from shared.wire import (
    MAX_ITEMS,
    FailedVerdict,
    JudgementItem,
    JudgementList,
    PendingVerdict,
    Priority,
    ReadJudgements,
    ScoredVerdict,
    SubmitJudgements,
)

LONG_POLL_S = 10.0
REQUEST_TIMEOUT_S = 10.0
"""Beyond the long poll."""
PAUSE_S = (0.2, 5.0)
"""First and longest pause after a request that may go better later."""


@dataclass(frozen=True)
class JudgeHttp:
    """Where a judge is and how to ask it. Holds no connection, so it can be copied and pickled."""

    url: str
    rubric: str
    api_key: str | None = None
    """None: what TETHER_JUDGE_API_KEY holds, if anything."""
    priority: Priority = Priority.EVALUATION
    group: str | None = None
    timeout_s: float = 120.0
    """For all verdicts of one call together. What is out by then has none."""
    transport: httpx.BaseTransport | None = None
    """httpx's seam, for tests."""

    def judge(self, items: Sequence[JudgementItem]) -> list[ScoredVerdict | FailedVerdict | None]:
        """One verdict an item, in their order; None where none came in time.

        Raises:
            JudgeRefusal: the service says that the request itself is wrong (its key, the rubric).
        """
        until = time.time() + self.timeout_s
        # Ids of our own, so that a request that is sent again is no second judgement.
        named = [
            item if item.id is not None else item.model_copy(update={"id": f"cli_{uuid4().hex}"})
            for item in items
        ]
        ids = [item.id or "" for item in named]
        verdicts: dict[str, ScoredVerdict | FailedVerdict] = {}
        with self._client() as client:
            for at in range(0, len(named), MAX_ITEMS):
                self._submit(client, named[at : at + MAX_ITEMS], until, verdicts)
            while (missing := [one for one in ids if one not in verdicts]) and time.time() < until:
                wait_s = max(0.0, min(LONG_POLL_S, until - time.time()))
                wanted = ReadJudgements(ids=missing[:MAX_ITEMS], wait_s=wait_s)
                try:
                    self._ask(client, "/v1/judgements/read", wanted, wait_s, until, verdicts)
                except _Forgotten:
                    # The service lost its store: the ids are idempotent.
                    again = [item for item in named if item.id in missing[:MAX_ITEMS]]
                    self._submit(client, again, until, verdicts)
        return [verdicts.get(one) for one in ids]

    def _submit(
        self,
        client: httpx.Client,
        items: Sequence[JudgementItem],
        until: float,
        verdicts: dict[str, ScoredVerdict | FailedVerdict],
    ) -> None:
        wanted = SubmitJudgements(
            items=list(items),
            rubric=self.rubric,
            priority=self.priority,
            group=self.group,
            expires_at=until,
        )
        self._ask(client, "/v1/judgements", wanted, 0.0, until, verdicts)

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=judge_headers(self.api_key), transport=self.transport)

    def _ask(
        self,
        client: httpx.Client,
        path: str,
        wanted: BaseModel,
        wait_s: float,
        until: float,
        verdicts: dict[str, ScoredVerdict | FailedVerdict],
    ) -> None:
        """One request, again and again until it is answered or the time is up; puts what came into
        `verdicts`. Raises JudgeRefusal."""
        pause_s = PAUSE_S[0]
        while True:
            try:
                answer = self._once(client, path, wanted, wait_s)
            except _Later as error:
                pause_s = min(2 * pause_s, PAUSE_S[1])
                # Jitter, or all ranks come back at once.
                asleep = max(error.retry_after_s, pause_s * random.uniform(0.5, 1.0))
                if time.time() + asleep >= until:
                    return
                time.sleep(asleep)
                continue
            verdicts |= {one.id: one for one in answer.items if not isinstance(one, PendingVerdict)}
            return

    def _once(self, client: httpx.Client, path: str, wanted: BaseModel, wait_s: float) -> JudgementList:
        body = wanted.model_dump_json(exclude_none=True)
        try:
            answer = client.post(
                path,
                content=body,
                headers={"Content-Type": "application/json"},
                timeout=wait_s + REQUEST_TIMEOUT_S,
            )
        except httpx.TransportError as error:
            raise _Later(
                f"no answer from the judge at {self.url}: {error or type(error).__name__}"
            ) from error
        said = f"the judge at {self.url} answered {path} with {answer.status_code}: {answer.text[:300]}"
        if answer.status_code == 429 or answer.status_code >= 500:
            raise _Later(said, _seconds(answer.headers.get("retry-after")))
        if answer.status_code in (404, 410) and isinstance(wanted, ReadJudgements):
            raise _Forgotten(said)
        if answer.status_code >= 400:
            raise JudgeRefusal(said)
        try:
            return JudgementList.model_validate_json(answer.content)
        except ValidationError as error:
            raise _Later(f"{said} (not judgements)") from error


class _Forgotten(JudgeRefusal):
    """It does not know ids that it admitted."""


class _Later(JudgeUnavailable):
    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def _seconds(header: str | None) -> float:
    return float(header) if header is not None and header.isdecimal() else 0.0
