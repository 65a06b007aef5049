"""Whether the judge can be asked, and telling it that a job's questions are moot."""

from __future__ import annotations

import httpx

from shared.judge_key import judge_headers
from trainer.safety.judge_state import trouble_of

TIMEOUT_S = 5.0


class JudgeAddress:
    def __init__(self, url: str, api_key: str | None = None, transport: httpx.BaseTransport | None = None):
        self.url = url.rstrip("/")
        self.api_key = api_key
        self._transport = transport

    def problem(self) -> str | None:
        """None when a worker would take an item now; else what is wrong."""
        try:
            with self._client() as client:
                answer = client.get("/readyz")
        except httpx.HTTPError as error:
            return f"the judge at {self.url} does not answer ({type(error).__name__}: {error})"
        return trouble_of(self.url, answer)

    def forget(self, job_id: str) -> str | None:
        """Cancels what is still queued for a job. Returns what went wrong, if something did: the items
        then expire by themselves."""
        try:
            with self._client() as client:
                answer = client.delete("/v1/judgements", params={"group": job_id})
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"
        return None if answer.is_success else f"HTTP {answer.status_code}"

    def _client(self) -> httpx.Client:
        headers = judge_headers(self.api_key)
        return httpx.Client(base_url=self.url, headers=headers, timeout=TIMEOUT_S, transport=self._transport)
