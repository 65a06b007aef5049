"""The trainer's side of the judge: sends texts, collects verdicts, never blocks the step.

Two threads own the connection. The training loop only puts questions into a queue and takes answers
out of another. A judge that is away costs nothing here: questions are sent again, under the same id,
until they expire; that they are overdue is the controller's business.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx
from pydantic import BaseModel, ValidationError

from shared.errors import JudgeRefusal, JudgeUnavailable
from shared.judge_key import judge_headers
from shared.wire import (
    MAX_ITEMS,
    FailedVerdict,
    FailureCode,
    JudgementItem,
    JudgementList,
    PendingVerdict,
    Priority,
    ReadJudgements,
    ScoredVerdict,
    SubmitJudgements,
    Suspects,
)
from trainer.safety.judge_state import trouble_of
from trainer.safety.ledger import Arrival, Failed, Scored, SourceName
from trainer.safety.question import Question, parse_id

LONG_POLL_S = 2.0
REQUEST_TIMEOUT_S = 10.0
"""Beyond the long poll."""
WATCH_S = 2.0
"""Between two looks at the judge itself."""
BACKOFF_S = (0.1, 2.0)
"""First and longest pause after a failed request; doubled in between."""
PRIORITY = {
    SourceName.POLICY: Priority.POLICY,
    # A reading waits for both.
    SourceName.REFERENCE: Priority.POLICY,
    SourceName.TARGET: Priority.TARGET,
    SourceName.CANARY: Priority.EVALUATION,
}


class Answer(NamedTuple):
    arrival: Arrival
    queue_ms: float
    judge_ms: float


@dataclass
class _Sent:
    question: Question
    expires_at: float
    """Unix seconds."""


class NoJudge:
    """Stands where every score was had beforehand: nothing is ever asked."""

    trouble: str | None = None
    state: str | None = None
    refusal: JudgeRefusal | None = None

    def submit(self, questions: Sequence[Question]) -> None:
        if questions:
            raise JudgeUnavailable(f"{len(questions)} texts want a verdict, but the run has no judge")

    def take(self) -> list[Answer]:
        return []

    def wait_for_news(self, timeout_s: float) -> None:
        """There will be none."""

    def outage_over(self, number: int, anew_from: int) -> None:
        """There was none."""

    def close(self) -> None:
        """Nothing is open."""


class JudgeClient:
    """One rank's connection to the judge for one run.

    Args:
        deadline_s: how long a question is worth answering; it travels as `expires_at`.
        watches: whether to look, now and then, how the judge stands and which verdicts it has
            withdrawn; one rank's client does, for all.
        transport: httpx's seam, for tests.
    """

    def __init__(
        self,
        *,
        url: str,
        rubric: str,
        job_id: str,
        deadline_s: float,
        api_key: str | None = None,
        watches: bool = False,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.rubric = rubric
        self.job_id = job_id
        self.run_id = job_id
        """Begins every id. `outage_over` changes it."""
        self.deadline_s = deadline_s
        self._http = httpx.Client(base_url=self.url, headers=judge_headers(api_key), transport=transport)
        self._to_send: queue.Queue[_Sent | None] = queue.Queue()
        self._answers: queue.Queue[Answer] = queue.Queue()
        self._news = threading.Event()
        self._lock = threading.Lock()
        self._pending: dict[str, _Sent] = {}
        """Admitted by the judge, no verdict yet. Guarded by the lock."""
        self._admitted = threading.Event()
        self._closed = threading.Event()
        self._anew_from: int | None = None
        """Readings before it were asked before the latest outage, under other run ids."""
        self._withdrawn: set[str] = set()
        self.state: str | None = None
        """What the judge says is wrong with itself; None where all is well, or nobody watches."""
        self.trouble: str | None = None
        """What went wrong with the latest request; None after one that went well."""
        self.refusal: JudgeRefusal | None = None
        """The judge said that what we ask is wrong (an unknown rubric, say): the run cannot go on."""
        self._threads = [
            threading.Thread(target=target, name=f"judge-client-{name}", daemon=True)
            for name, target in (
                ("submit", self._submit_loop),
                ("read", self._read_loop),
                *([("watch", self._watch_loop)] if watches else []),
            )
        ]
        for thread in self._threads:
            thread.start()

    # --- the training loop's side ----------------------------------------------------------

    def submit(self, questions: Sequence[Question]) -> None:
        """Queues them and returns at once."""
        expires_at = time.time() + self.deadline_s
        for question in questions:
            self._to_send.put(_Sent(question, expires_at))

    def take(self) -> list[Answer]:
        """All answers that have come since the last call."""
        self._news.clear()
        taken = []
        while True:
            try:
                taken.append(self._answers.get_nowait())
            except queue.Empty:
                return taken

    def wait_for_news(self, timeout_s: float) -> None:
        self._news.wait(timeout_s)

    def outage_over(self, number: int, anew_from: int) -> None:
        """Ids of the outages before keep their verdicts (`failed: expired`, mostly): ask under new ones,
        from the reading `anew_from` on."""
        self.run_id = f"{self.job_id}.{number}"
        self._anew_from = anew_from

    def close(self) -> None:
        self._closed.set()
        self._to_send.put(None)
        self._admitted.set()
        for thread in self._threads:
            thread.join(timeout=LONG_POLL_S + REQUEST_TIMEOUT_S)
        self._http.close()

    # --- the threads' side -----------------------------------------------------------------

    def _submit_loop(self) -> None:
        while not self._closed.is_set():
            for priority, batch in self._next_batches().items():
                self._send(priority, batch)

    def _next_batches(self) -> dict[Priority, list[_Sent]]:
        """Waits for a question, then takes what else is there, by priority."""
        batches: dict[Priority, list[_Sent]] = {}
        sent = self._to_send.get()
        for _ in range(MAX_ITEMS):
            if sent is None:
                break
            batches.setdefault(PRIORITY[sent.question.key.source], []).append(sent)
            try:
                sent = self._to_send.get_nowait()
            except queue.Empty:
                break
        else:
            self._to_send.put(sent)
        return batches

    def _send(self, priority: Priority, batch: list[_Sent]) -> None:
        """Until the judge has admitted them, or they have expired."""
        pause = BACKOFF_S[0]
        while batch and not self._closed.is_set():
            batch = self._drop_expired(batch)
            if not batch:
                return
            body = SubmitJudgements(
                items=[
                    JudgementItem(
                        id=sent.question.id(self.run_id),
                        prompt=list(sent.question.prompt),
                        response=sent.question.response,
                    )
                    for sent in batch
                ],
                rubric=self.rubric,
                priority=priority,
                group=self.job_id,
                expires_at=min(sent.expires_at for sent in batch),
            )
            try:
                answer = self._ask("/v1/judgements", body)
            except JudgeUnavailable as error:
                self.trouble = str(error)
                # Jitter, or all ranks come back at once.
                self._closed.wait(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, BACKOFF_S[1])
                continue
            except JudgeRefusal as error:
                self.refusal = error
                self._news.set()
                return
            self.trouble = None
            with self._lock:
                for sent in batch:
                    self._pending[sent.question.id(self.run_id)] = sent
            self._deliver(answer)
            self._admitted.set()
            return

    def _drop_expired(self, batch: list[_Sent]) -> list[_Sent]:
        now = time.time()
        for sent in batch:
            if sent.expires_at <= now:
                self._finish(sent.question, Failed(FailureCode.TIMEOUT), 0.0, 0.0)
        return [sent for sent in batch if sent.expires_at > now]

    def _read_loop(self) -> None:
        pause = BACKOFF_S[0]
        while not self._closed.is_set():
            ids = self._pending_ids()
            if not ids:
                self._admitted.wait()
                self._admitted.clear()
                continue
            chunks = [ids[at : at + MAX_ITEMS] for at in range(0, len(ids), MAX_ITEMS)]
            for chunk in chunks:
                # With several chunks none may be waited on while another has news.
                wait_s = LONG_POLL_S if len(chunks) == 1 else 0.1
                body = ReadJudgements(ids=chunk, wait_s=wait_s)
                try:
                    self._deliver(self._ask("/v1/judgements/read", body, wait_s=wait_s))
                except JudgeUnavailable as error:
                    self.trouble = str(error)
                    self._closed.wait(pause * random.uniform(0.5, 1.0))
                    pause = min(2 * pause, BACKOFF_S[1])
                except JudgeRefusal as error:
                    self.trouble = str(error)
                    self._ask_again(chunk)
                    self._closed.wait(BACKOFF_S[0])
                else:
                    self.trouble = None
                    pause = BACKOFF_S[0]

    def _watch_loop(self) -> None:
        while not self._closed.wait(WATCH_S):
            try:
                self.state = trouble_of(self.url, self._get("/readyz"))
                answer = self._get("/v1/judgements/suspects", group=self.job_id)
                if answer.status_code == httpx.codes.OK:
                    self._withdraw(Suspects.model_validate_json(answer.content).ids)
            except (httpx.TransportError, ValidationError) as error:
                # The submitting thread meets the same judge, and keeps its own account.
                self.state = f"the judge at {self.url} cannot be read: {error or type(error).__name__}"

    def _get(self, path: str, **params: str) -> httpx.Response:
        return self._http.get(path, params=params, timeout=REQUEST_TIMEOUT_S)

    def _withdraw(self, ids: Sequence[str]) -> None:
        """Tells of verdicts that have turned suspect, once each."""
        for item_id in ids:
            if item_id in self._withdrawn:
                continue
            self._withdrawn.add(item_id)
            parsed = parse_id(item_id)
            if parsed is None:
                continue
            run_id, key = parsed
            # A reading that was asked again after an outage has the verdicts of its new ids.
            if run_id == self.run_id or (self._anew_from is not None and key.made_at < self._anew_from):
                self._answers.put(Answer(Arrival(key, Failed(FailureCode.UNTRUSTED)), 0.0, 0.0))
                self._news.set()

    def _pending_ids(self) -> list[str]:
        """Those still worth waiting for; the others end `failed: timeout` here."""
        now = time.time()
        with self._lock:
            # The judge itself ends what has expired; a little later we no longer wait for its word.
            overdue = [i for i, sent in self._pending.items() if sent.expires_at + LONG_POLL_S < now]
            dropped = [self._pending.pop(i) for i in overdue]
            ids = list(self._pending)
        for sent in dropped:
            self._finish(sent.question, Failed(FailureCode.TIMEOUT), 0.0, 0.0)
        return ids

    def _ask_again(self, ids: Sequence[str]) -> None:
        """The judge knows some of these ids no more (its store was lost): the ids are idempotent."""
        with self._lock:
            again = [self._pending.pop(i) for i in ids if i in self._pending]
        for sent in again:
            self._to_send.put(sent)

    def _deliver(self, answer: JudgementList) -> None:
        for judgement in answer.items:
            if isinstance(judgement, PendingVerdict):
                continue
            with self._lock:
                sent = self._pending.pop(judgement.id, None)
            if sent is None:
                continue
            fate: Scored | Failed
            match judgement:
                case ScoredVerdict(suspect=True, timings=timings):
                    fate = Failed(FailureCode.UNTRUSTED)
                    self._finish(sent.question, fate, timings.queue_ms, timings.judge_ms)
                case ScoredVerdict(score=score, judge=judge, timings=timings):
                    fate = Scored(score, judge.score_kind)
                    self._finish(sent.question, fate, timings.queue_ms, timings.judge_ms)
                case FailedVerdict(error=error, timings=timings):
                    self._finish(sent.question, Failed(error.code), timings.queue_ms, timings.judge_ms)

    def _finish(self, question: Question, fate: Scored | Failed, queue_ms: float, judge_ms: float) -> None:
        self._answers.put(Answer(Arrival(question.key, fate), queue_ms, judge_ms))
        self._news.set()

    def _ask(self, path: str, body: BaseModel, *, wait_s: float = 0.0) -> JudgementList:
        """A request that judgements answer. Raises as `_request`; garbage may go better later too."""
        content = self._request("POST", path, wait_s=wait_s, json=body.model_dump(mode="json"))
        try:
            return JudgementList.model_validate_json(content)
        except ValidationError as error:
            raise JudgeUnavailable(
                f"the judge at {self.url} answered POST {path} with no judgements: {error.errors()[0]['msg']}"
            ) from error

    def _request(self, method: str, path: str, *, wait_s: float = 0.0, **arguments: Any) -> bytes:
        """One request.

        Raises:
            JudgeUnavailable: it may go better later (no answer, 429, 5xx).
            JudgeRefusal: it will not (any other 4xx).
        """
        try:
            response = self._http.request(method, path, timeout=wait_s + REQUEST_TIMEOUT_S, **arguments)
        except httpx.TransportError as error:
            raise JudgeUnavailable(
                f"no answer from the judge at {self.url}: {error or type(error).__name__}. Is it up?"
            ) from error
        if response.status_code == 429 or response.status_code >= 500:
            raise JudgeUnavailable(
                f"the judge at {self.url} answered {method} {path} with {response.status_code}:"
                f" {response.text[:300]}"
            )
        if response.status_code >= 400:
            raise JudgeRefusal(
                f"the judge at {self.url} refused {method} {path} with {response.status_code}:"
                f" {response.text[:300]}"
            )
        return response.content
