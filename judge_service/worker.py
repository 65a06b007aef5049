"""A worker: takes batches from the queue, has its backend judge them, stores the verdicts.

It keeps alive what it holds. What it cannot finish (it is killed, its backend breaks it) is taken over
by another worker once its lease has run out; what was handed out too often is given up.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar
from uuid import uuid4

from redis import exceptions as redis_errors

from judge_service.backends.base import (
    Backend,
    BackendError,
    BackendInfo,
    Grade,
    GradeFailure,
    GradeRequest,
)
from judge_service.cache import VerdictCache
from judge_service.pace import Pace
from judge_service.queue import Completion, JudgementQueue, Lease
from judge_service.verdicts import judge_info, unjudged_json, verdict_json
from shared.errors import ServiceError
from shared.logs import fields
from shared.rubrics.rubric import Rubric
from shared.wire import FailureCode

logger = logging.getLogger(__name__)

BLOCK_MS = 500
"""Longest wait for work at a time; a drain begins after at most so long."""

SUSPECT_DELIVERIES = 3
"""From this delivery on an item is judged alone, lest one that breaks the backend takes its batch along."""

REDIS_AWAY = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.OutOfMemoryError,
    redis_errors.ReadOnlyError,
)
"""Heals by itself or by an operator; nothing is lost by asking again."""

T = TypeVar("T")


@dataclass(frozen=True)
class WorkerSettings:
    batch_size: int
    linger_ms: int
    concurrency: int
    lease_s: float
    max_deliveries: int
    redis_deadline_s: float
    cache: bool = True


class Worker:
    def __init__(
        self,
        queue: JudgementQueue,
        backend: Backend,
        rubrics: Mapping[str, Rubric],
        settings: WorkerSettings,
        name: str | None = None,
    ) -> None:
        self._queue = queue
        self._backend = backend
        self._settings = settings
        self._rubrics = rubrics
        self._judges = {key: judge_info(backend.info, rubric) for key, rubric in rubrics.items()}
        self._cache = VerdictCache(queue, self._judges, on=settings.cache and backend.info.cacheable)
        self._pace = Pace()
        self.name = name or f"{socket.gethostname()}-{uuid4().hex[:8]}"
        self._held: dict[tuple[str, str], Lease] = {}
        self._draining = asyncio.Event()
        self._next_reclaim = 0.0

    def describe(self) -> dict[str, object]:
        """What the ready line and readiness say of this worker."""
        info: BackendInfo = self._backend.info
        return {
            "worker": self.name,
            "kind": info.kind,
            "model": info.model,
            "score_kind": info.score_kind.value,
            "rubrics": {name: rubric.hash for name, rubric in self._rubrics.items()},
        }

    def drain(self) -> None:
        """Take nothing new, finish what is held; `run` returns then."""
        self._draining.set()

    async def start(self) -> None:
        """Reach Redis and sign on.

        Raises:
            ServiceError: Redis is away for longer than the deadline.
        """
        await self._insist("create_groups", self._queue.create_groups)
        await self._insist("keep_alive", self._keep_alive)

    async def run(self) -> None:
        """Work until drained.

        Raises:
            ServiceError: Redis is away for longer than the deadline.
        """
        free = asyncio.Semaphore(self._settings.concurrency)
        async with asyncio.TaskGroup() as tasks:
            beats = tasks.create_task(self._beat())
            async with asyncio.TaskGroup() as batches:
                while not self._draining.is_set():
                    await free.acquire()
                    leases = await self._take()
                    if leases:
                        batch = batches.create_task(self._handle(leases))
                        batch.add_done_callback(lambda _: free.release())
                    else:
                        free.release()
            beats.cancel()
        await self._insist("sign_off", lambda: self._queue.sign_off(self.name))

    # --- taking ----------------------------------------------------------------------------

    async def _take(self) -> list[Lease]:
        """The next batch, held from here on. Empty after an idle wait."""
        size = self._settings.batch_size
        if time.monotonic() >= self._next_reclaim:
            lease_ms = int(self._settings.lease_s * 1000)
            taken = await self._insist("reclaim", lambda: self._queue.reclaim(self.name, lease_ms, size))
            if taken:
                logger.warning("took over items of a worker that is gone", extra=fields(items=len(taken)))
                return self._hold(taken)
            # A full round without any: nothing is overdue now.
            self._next_reclaim = time.monotonic() + self._settings.lease_s / 3
        leases = await self._fetch(size, BLOCK_MS)
        missing = size - len(leases)
        linger_s = self._pace.linger_s(self._settings.linger_ms / 1000)
        if leases and missing > 0 and linger_s > 0 and not self._draining.is_set():
            await asyncio.sleep(linger_s)
            leases += await self._fetch(missing, 0)
        return leases

    async def _fetch(self, count: int, block_ms: int) -> list[Lease]:
        judging_s = self._pace.needs_s
        fetched = await self._insist(
            "fetch", lambda: self._queue.fetch(self.name, count, block_ms, judging_s=judging_s)
        )
        if fetched.dropped:
            logger.warning("ended items whose time was up", extra=fields(items=fetched.dropped))
            if not fetched.leases:
                self._pace.nothing_left()
        return self._hold(fetched.leases)

    def _hold(self, leases: list[Lease]) -> list[Lease]:
        # What this worker already has in hand comes back to it when its own heartbeats were late.
        fresh = [lease for lease in leases if (lease.stream, lease.entry) not in self._held]
        self._held.update({(lease.stream, lease.entry): lease for lease in fresh})
        return fresh

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._settings.lease_s / 3)
            await self._insist("keep_alive", self._keep_alive)

    async def _keep_alive(self) -> None:
        info = json.dumps({**self.describe(), "pid": os.getpid()})
        alive_s = max(1, round(self._settings.lease_s))
        await self._queue.keep_alive(self.name, list(self._held.values()), info, alive_s)

    # --- judging ---------------------------------------------------------------------------

    async def _handle(self, leases: list[Lease]) -> None:
        now = time.time()
        live = await self._but_ended(leases, [self._hopeless(lease, now) for lease in leases])
        live = await self._but_ended(
            live, await self._insist("cached", lambda: self._cache.completions(live))
        )
        batch = [lease for lease in live if lease.deliveries < SUSPECT_DELIVERIES]
        suspects = [[lease] for lease in live if lease.deliveries >= SUSPECT_DELIVERIES]
        for group in [batch, *suspects] if batch else suspects:
            await self._judge(group)

    async def _but_ended(self, leases: list[Lease], ends: Sequence[Completion | None]) -> list[Lease]:
        """Store how some of the leases end; the others."""
        if done := [end for end in ends if end is not None]:
            await self._complete(done)
        return [lease for lease, end in zip(leases, ends, strict=True) if end is None]

    def _hopeless(self, lease: Lease, now: float) -> Completion | None:
        """What ends without being judged."""
        if lease.expires_at is not None and lease.expires_at <= now:
            message = f"it was {now - lease.expires_at:.1f} s past its expires_at when a worker took it"
            return Completion(lease, unjudged_json(lease, FailureCode.EXPIRED, message, now=now))
        if lease.deliveries > self._settings.max_deliveries:
            message = f"given up: handed to {lease.deliveries - 1} workers, and none came to its end"
            verdict = unjudged_json(lease, FailureCode.SERVER_ERROR, message, now=now)
            return Completion(lease, verdict, dead=True)
        if lease.rubric not in self._rubrics:
            message = (
                f"this worker's judge cannot grade by rubric {lease.rubric!r}; it can by"
                f" {', '.join(sorted(self._rubrics))}"
            )
            return Completion(lease, unjudged_json(lease, FailureCode.SERVER_ERROR, message, now=now))
        return None

    async def _judge(self, leases: Sequence[Lease]) -> None:
        requests = [
            GradeRequest(self._rubrics[lease.rubric], *lease.text(), rationale=lease.rationale)
            for lease in leases
        ]
        began = time.time()
        answers = await self._ask(requests)
        ended = time.time()
        done = []
        for lease, answer in zip(leases, answers, strict=True):
            verdict = verdict_json(lease, answer, self._judges[lease.rubric], began=began, ended=ended)
            kept = self._cache.key(lease) if isinstance(answer, Grade) else ""
            done.append(Completion(lease, verdict, cache_key=kept))
        await self._complete(done)
        self._pace.took(time.time() - began)
        failed = [answer.code.value for answer in answers if isinstance(answer, GradeFailure)]
        logger.info(
            "judged a batch",
            extra=fields(items=len(leases), failed=failed, ms=round((ended - began) * 1000, 1)),
        )

    async def _ask(self, requests: Sequence[GradeRequest]) -> Sequence[Grade | GradeFailure]:
        try:
            answers = await self._backend.judge(requests)
        except BackendError as error:
            logger.error("the backend failed on a batch", extra=fields(items=len(requests), error=str(error)))
            return [GradeFailure(FailureCode.SERVER_ERROR, str(error))] * len(requests)
        if len(answers) != len(requests):
            message = f"the backend gave {len(answers)} answers to {len(requests)} items"
            logger.error(message)
            return [GradeFailure(FailureCode.SERVER_ERROR, message)] * len(requests)
        return answers

    async def _complete(self, completions: Sequence[Completion]) -> None:
        await self._insist("complete", lambda: self._queue.complete(completions))
        for completion in completions:
            self._held.pop((completion.lease.stream, completion.lease.entry), None)

    async def _insist(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """Call until Redis answers. Every call to the queue may be made again."""
        until = time.monotonic() + self._settings.redis_deadline_s
        pause_s = 0.05
        while True:
            try:
                return await call()
            except REDIS_AWAY as error:
                if time.monotonic() > until:
                    raise ServiceError(
                        f"Redis did not take {what} for {self._settings.redis_deadline_s:g} s: {error}"
                    ) from error
                if self._draining.is_set() and not self._held:
                    raise ServiceError("stopped while Redis was away; nothing was in hand") from error
                logger.warning("Redis is away", extra=fields(call=what, error=type(error).__name__))
            await asyncio.sleep(pause_s)
            pause_s = min(1.0, pause_s * 2)
