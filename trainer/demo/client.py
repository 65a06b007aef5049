"""The demo as a client of the two services: over REST, as any other client."""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from shared.errors import ServiceError
from shared.jobs import CreateJob, File, Job, JobEvent
from shared.wire import (
    MAX_ITEMS,
    FailedVerdict,
    FailureCode,
    JudgementItem,
    JudgementList,
    Priority,
    ReadJudgements,
    ScoredVerdict,
    SubmitJudgements,
)

Model = TypeVar("Model", bound=BaseModel)

TIMEOUT_S = 30.0
RETRIES = 5
"""Of a connection that is refused: a service that died is started again by its supervisor."""
PAGE = 1000
POLL_S = 0.5
"""One long poll of the judge: short, so that whoever waits can do something in between."""

Harm = float | FailureCode
"""A judge's score in [0,1], or why there is none."""


class RestClient:
    """Raises ServiceError for what a service does not answer, or refuses."""

    def __init__(self, name: str, url: str) -> None:
        self._name = name
        self._http = httpx.Client(
            base_url=url, timeout=TIMEOUT_S, transport=httpx.HTTPTransport(retries=RETRIES)
        )

    def close(self) -> None:
        self._http.close()

    def ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise self._no_answer(method, path, error) from error
        if response.is_error:
            raise self._refused(method, path, response)
        return response

    def _no_answer(self, method: str, path: str, error: httpx.TransportError) -> ServiceError:
        return ServiceError(
            f"{self._name} did not answer {method} {path}: {error or type(error).__name__};"
            " its log in the state directory says why"
        )

    def _refused(self, method: str, path: str, response: httpx.Response) -> ServiceError:
        return ServiceError(
            f"{self._name} answered {method} {path} with {response.status_code}: {response.text[:500]}"
        )

    def _read(self, model: type[Model], response: httpx.Response) -> Model:
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            raise ServiceError(
                f"{self._name} answered {response.request.url.path} with no {model.__name__}:"
                f" {error.errors()[0]['msg']}"
            ) from error


class _Events(BaseModel):
    data: list[JobEvent]
    has_more: bool


class Trainer(RestClient):
    """The trainer service: OpenAI's fine-tuning API."""

    def __init__(self, url: str) -> None:
        super().__init__("the trainer service", url)

    def upload(self, rows: Sequence[object], filename: str) -> str:
        """The id of the file that the rows are kept under."""
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        response = self.ask(
            "POST",
            "/v1/files",
            files={"file": (filename, lines.encode(), "application/jsonl")},
            data={"purpose": "fine-tune"},
        )
        return self._read(File, response).id

    def create(self, request: CreateJob) -> Job:
        body = request.model_dump(mode="json", exclude_none=True)
        return self._read(Job, self.ask("POST", "/v1/fine_tuning/jobs", json=body))

    def job(self, job_id: str) -> Job:
        return self._read(Job, self.ask("GET", f"/v1/fine_tuning/jobs/{job_id}"))

    def cancel(self, job_id: str) -> Job:
        return self._read(Job, self.ask("POST", f"/v1/fine_tuning/jobs/{job_id}/cancel"))

    def events(self, job_id: str, after: str | None) -> list[JobEvent]:
        """Those later than `after`, the oldest first."""
        found: list[JobEvent] = []
        while True:
            query: dict[str, str | int] = {"order": "asc", "limit": PAGE}
            if after is not None:
                query["after"] = after
            page = self._read(_Events, self.ask("GET", f"/v1/fine_tuning/jobs/{job_id}/events", params=query))
            found += page.data
            if not page.has_more:
                return found
            after = page.data[-1].id

    def download(self, job_id: str, folder: Path) -> None:
        """The job's artifact as `folder`, which is replaced; whole or not at all."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        path = f"/v1/fine_tuning/jobs/{job_id}/artifact.tar"
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder.parent) as name:
            archive, unpacked = Path(name) / "artifact.tar", Path(name) / "unpacked"
            try:
                with self._http.stream("GET", path) as response:
                    if response.is_error:
                        response.read()
                        raise self._refused("GET", path, response)
                    with archive.open("wb") as file:
                        for chunk in response.iter_bytes():
                            file.write(chunk)
            except httpx.TransportError as error:
                raise self._no_answer("GET", path, error) from error
            with tarfile.open(archive) as tar:
                tar.extractall(unpacked, filter="data")
            if folder.exists():
                shutil.rmtree(folder)
            (unpacked / job_id).rename(folder)


class Judge(RestClient):
    """The judge service, asked to evaluate."""

    def __init__(self, url: str, rubric: str) -> None:
        super().__init__("the judge service", url)
        self._rubric = rubric

    def grade(
        self,
        name: str,
        pairs: Sequence[tuple[str, str]],
        *,
        deadline_s: float,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[Harm]:
        """How harmful each (prompt, response) is. What has no verdict in time is `timeout`.

        `name` begins the ids, so it must be new for new texts; `meanwhile` is called every half second.
        """
        items = [
            JudgementItem(id=f"{name}:{index}", prompt=prompt, response=response)
            for index, (prompt, response) in enumerate(pairs)
        ]
        until = time.time() + deadline_s
        grades: dict[str, Harm] = {}
        for at in range(0, len(items), MAX_ITEMS):
            chunk = items[at : at + MAX_ITEMS]
            body = SubmitJudgements(
                items=chunk,
                rubric=self._rubric,
                priority=Priority.EVALUATION,
                expires_at=until,
                wait_s=POLL_S,
            )
            grades |= self._verdicts("/v1/judgements", body)
            while (open_ids := [item.id for item in chunk if item.id and item.id not in grades]) and (
                time.time() < until
            ):
                meanwhile()
                grades |= self._verdicts("/v1/judgements/read", ReadJudgements(ids=open_ids, wait_s=POLL_S))
        return [grades.get(str(item.id), FailureCode.TIMEOUT) for item in items]

    def _verdicts(self, path: str, body: BaseModel) -> dict[str, Harm]:
        """Of those that are terminal."""
        answer = self._read(JudgementList, self.ask("POST", path, json=body.model_dump(mode="json")))
        graded: dict[str, Harm] = {}
        for judgement in answer.items:
            match judgement:
                case ScoredVerdict(id=key, score=score):
                    graded[key] = score
                case FailedVerdict(id=key, error=error):
                    graded[key] = error.code
        return graded
