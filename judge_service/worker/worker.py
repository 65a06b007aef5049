"""A worker: takes batches from the queue, has its backend judge them, stores the verdicts.

It keeps alive what it holds. What it cannot finish (it is killed, its backend breaks it) is taken over
by another worker once its lease has run out; what was handed out too often is given up. It takes nothing
while its judge is away, is not trusted, or an operator says so (guard.py), and gives back uncounted what
it holds then and what it cannot finish in time when it is stopped.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from judge_service.backends.base import Backend, BackendInfo
from judge_service.ending import end
from judge_service.queue.leases import Leases
from judge_service.queue.streams import JudgementQueue, Lease
from judge_service.worker.guard import Controls, Guard, wait_set
from judge_service.worker.hand import Hand, Stopping
from judge_service.worker.holds import Holds
from judge_service.worker.judging import Judging
from judge_service.worker.metrics import WorkerMetrics
from judge_service.worker.pace import Pace
from judge_service.worker.trust import Unvouched, judge_digest
from shared.logs import fields
from shared.rubrics.rubric import Rubric

logger = logging.getLogger(__name__)

BLOCK_MS = 500
"""Longest wait for work at a time; a drain begins after at most so long."""


@dataclass(frozen=True)
class WorkerSettings:
    batch_size: int
    linger_ms: int
    concurrency: int
    lease_s: float
    max_deliveries: int
    redis_deadline_s: float
    cache: bool = True
    grace_s: float = 8.0
    """When it is stopped: seconds to finish what it holds; the rest is given back."""


class Worker:
    def __init__(
        self,
        queue: JudgementQueue,
        backend: Backend,
        rubrics: Mapping[str, Rubric],
        settings: WorkerSettings,
        controls: Controls,
        name: str | None = None,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self._queue = queue
        self._backend = backend
        self._settings = settings
        self._rubrics = rubrics
        self.name = name or f"{socket.gethostname()}-{uuid4().hex[:8]}"
        metrics = metrics or WorkerMetrics()
        self._pace = Pace()
        self._stopping = Stopping()
        self._hand = Hand(queue, self.name, self._stopping, metrics, settings.redis_deadline_s)
        self._judging = Judging(
            queue,
            backend,
            rubrics,
            self._hand,
            self._pace,
            metrics,
            self._stopping,
            max_deliveries=settings.max_deliveries,
            cache=settings.cache,
        )
        self._leases = Leases(queue.redis, queue.keys)
        self._holds = Holds(queue.redis, queue.keys)
        judge = judge_digest(backend.info)
        self._guard = Guard(
            self.name,
            backend,
            rubrics,
            controls,
            Unvouched(queue.redis, queue.keys, judge, self.name, queue.result_ttl_s),
            self._holds,
            self._judging.forget,
        )
        metrics.at_once.set(settings.concurrency)
        metrics.backend_up.set_function(lambda: float(self._guard.may_judge()))
        self._batches: set[asyncio.Task[None]] = set()
        self._next_reclaim = self._next_tidy = 0.0

    def describe(self) -> dict[str, object]:
        """What the ready line and readiness say of this worker."""
        info: BackendInfo = self._backend.info
        return {
            "worker": self.name,
            "kind": info.kind,
            "model": info.model,
            "score_kind": info.score_kind.value,
            "rubrics": {name: rubric.hash for name, rubric in self._rubrics.items()},
            "in_hand": len(self._hand),
            "draining": self._stopping.draining.is_set(),
            **self._guard.describe(),
        }

    def drain(self) -> None:
        """Take nothing new, finish what is held within the grace time and give the rest back; `run`
        returns then. The second time: give it back now."""
        if self._stopping.draining.is_set():
            self._stopping.hurry.set()
        self._stopping.draining.set()

    async def start(self) -> None:
        """Reach Redis and sign on.

        Raises:
            ServiceError: Redis is away for longer than the deadline.
        """
        await self._hand.insist("create_groups", self._queue.create_groups)
        await self._hand.insist("look", self._guard.look)
        await self._hand.insist("keep_alive", self._keep_alive)

    async def run(self) -> None:
        """Work until drained.

        Raises:
            ServiceError: Redis is away for longer than the deadline.
        """
        async with asyncio.TaskGroup() as tasks:
            beats = tasks.create_task(self._until_over(self._beat()))
            guard = tasks.create_task(self._until_over(self._guard.run()))
            await self._until_over(self._work())
            await end(guard)
            await end(beats)
        await self._hand.insist("sign_off", self._sign_off)

    async def _until_over(self, part: Coroutine[Any, Any, None]) -> None:
        """The parts of the worker end together, also where one fails: by a word, since a cancellation may
        be lost (ending.py) and what was cancelled would go on for ever."""
        try:
            await part
        finally:
            self._stopping.over.set()
            self._guard.stop()

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as batches:
            await self._take_batches(batches)
            await self._finish()
        if len(self._hand):
            await self._hand.give_back(self._hand.leases)

    async def _take_batches(self, batches: asyncio.TaskGroup) -> None:
        """Until drained."""
        free = asyncio.Semaphore(self._settings.concurrency)
        while not (self._stopping.draining.is_set() or self._stopping.over.is_set()):
            if not self._guard.may_take():
                await self._guard.until_changed(BLOCK_MS / 1000)
                continue
            await free.acquire()
            leases = await self._take()
            if leases and not self._guard.may_take():
                await self._hand.give_back(leases)
                leases = []
            if not leases:
                free.release()
                continue
            batch = batches.create_task(self._judging.handle(leases, self._guard))
            self._batches.add(batch)
            batch.add_done_callback(self._batches.discard)
            batch.add_done_callback(lambda _: free.release())
            batch.add_done_callback(self._end_on_fault)

    def _end_on_fault(self, batch: asyncio.Task[None]) -> None:
        # The group cancels the taking of batches once, and that may be lost (ending.py).
        if not batch.cancelled() and batch.exception() is not None:
            self._stopping.over.set()

    async def _finish(self) -> None:
        """Wait for what is being judged; end it where the time for that is over."""
        if self._batches:
            hurried = asyncio.create_task(self._stopping.hurry.wait())
            done = asyncio.gather(*self._batches, return_exceptions=True)
            either: list[asyncio.Future[Any]] = [hurried, done]
            await asyncio.wait(either, timeout=self._settings.grace_s, return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
            if not done.done():
                logger.warning("giving back what was not judged in time", extra=fields(items=len(self._hand)))
                # Which cancels the batches.
                done.cancel()
        self._stopping.hurry.set()

    async def _sign_off(self) -> None:
        await self._queue.sign_off(self.name)
        await self._holds.forget(self.name)
        await self._leases.tidy(self._gone_after_ms, going=self.name)

    @property
    def _gone_after_ms(self) -> int:
        return int(self._settings.lease_s * 3000)

    # --- taking ----------------------------------------------------------------------------

    async def _take(self) -> list[Lease]:
        """The next batch, held from here on. Empty after an idle wait."""
        size = self._settings.batch_size
        if self._hand.gave_back or time.monotonic() >= self._next_reclaim:
            self._hand.gave_back = False
            lease_ms = int(self._settings.lease_s * 1000)
            taken = await self._hand.insist("reclaim", lambda: self._queue.reclaim(self.name, lease_ms, size))
            if taken:
                logger.warning("took over items that nobody kept alive", extra=fields(items=len(taken)))
                # There may be more.
                self._next_reclaim = 0.0
                return self._hand.hold(taken)
            # A full round without any: nothing is overdue now.
            self._next_reclaim = time.monotonic() + self._settings.lease_s / 3
        leases = await self._fetch(size, BLOCK_MS)
        missing = size - len(leases)
        linger_s = self._pace.linger_s(self._settings.linger_ms / 1000)
        if leases and missing > 0 and linger_s > 0 and not self._stopping.draining.is_set():
            await asyncio.sleep(linger_s)
            leases += await self._fetch(missing, 0)
        return leases

    async def _fetch(self, count: int, block_ms: int) -> list[Lease]:
        judging_s = self._pace.needs_s
        fetched = await self._hand.insist(
            "fetch", lambda: self._queue.fetch(self.name, count, block_ms, judging_s=judging_s)
        )
        if fetched.dropped:
            logger.warning("ended items whose time was up", extra=fields(items=fetched.dropped))
            if not fetched.leases:
                self._pace.nothing_left()
        return self._hand.hold(fetched.leases)

    async def _beat(self) -> None:
        while not self._stopping.over.is_set():
            await wait_set(self._stopping.over, self._settings.lease_s / 3)
            await self._hand.insist("keep_alive", self._keep_alive)
            if time.monotonic() >= self._next_tidy:
                self._next_tidy = time.monotonic() + self._gone_after_ms / 1000
                await self._hand.insist("tidy", lambda: self._leases.tidy(self._gone_after_ms))

    async def _keep_alive(self) -> None:
        info = json.dumps({**self.describe(), "pid": os.getpid()})
        alive_s = max(1, round(self._settings.lease_s))
        await self._queue.keep_alive(self.name, self._hand.leases, info, alive_s)
