"""A worker: takes batches from the queue, has its backend judge them, stores the verdicts.

It keeps alive what it holds. What it cannot finish (it is killed, its backend breaks it) is taken over
by another worker once its lease has run out; what was handed out too often is given up. It takes nothing
while its judge is away, is not trusted, or an operator says so (guard.py), and gives back uncounted what
it holds then and what it cannot finish in time when it is stopped.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

from redis import exceptions as redis_errors

from judge_service.ask import judge_traced
from judge_service.backends.base import (
    Backend,
    BackendError,
    BackendInfo,
    BackendUnavailable,
    Grade,
    GradeFailure,
    GradeRequest,
)
from judge_service.cache import VerdictCache
from judge_service.ending import end
from judge_service.endings import hopeless
from judge_service.guard import Controls, Guard, wait_set
from judge_service.holds import Holds
from judge_service.kinds import GroupKinds
from judge_service.leases import Leases
from judge_service.metrics import WorkerMetrics
from judge_service.pace import Pace
from judge_service.queue import Completion, JudgementQueue, Lease
from judge_service.trust import Unvouched, judge_digest
from judge_service.verdicts import judge_info, verdict_json
from shared.errors import ServiceError
from shared.logs import fields
from shared.rubrics.rubric import Rubric
from shared.wire import FailureCode

logger = logging.getLogger(__name__)

BLOCK_MS = 500
"""Longest wait for work at a time; a drain begins after at most so long."""

ALONE_FROM_DELIVERY = 3
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
    grace_s: float = 8.0
    """When it is stopped: seconds to finish what it holds; the rest is given back."""


@dataclass(frozen=True)
class _Answered:
    answers: Sequence[Grade | GradeFailure]
    broke: bool = False
    """The backend failed on the batch as a whole."""


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
        self._pace = Pace()
        self.name = name or f"{socket.gethostname()}-{uuid4().hex[:8]}"
        self._know_judge()
        info, ttl_s = backend.info, queue.result_ttl_s
        self._leases = Leases(queue.redis, queue.keys)
        self._kinds = GroupKinds(queue.redis, queue.keys, info.score_kind, ttl_s)
        self._holds = Holds(queue.redis, queue.keys)
        self._guard = Guard(
            self.name,
            backend,
            rubrics,
            controls,
            Unvouched(queue.redis, queue.keys, judge_digest(info), self.name, ttl_s),
            self._holds,
            lambda leases: self._cache.forget(leases),
        )
        self._held: dict[tuple[str, str], Lease] = {}
        self._metrics = metrics or WorkerMetrics()
        self._metrics.held.set_function(lambda: len(self._held))
        self._metrics.backend_up.set_function(lambda: float(self._guard.may_judge()))
        self._batches: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self._draining = asyncio.Event()
        self._hurry = asyncio.Event()
        self._over = asyncio.Event()
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
            "in_hand": len(self._held),
            "draining": self._draining.is_set(),
            **self._guard.describe(),
        }

    def drain(self) -> None:
        """Take nothing new, finish what is held within the grace time and give the rest back; `run`
        returns then. The second time: give it back now."""
        if self._draining.is_set():
            self._hurry.set()
        self._draining.set()

    async def start(self) -> None:
        """Reach Redis and sign on.

        Raises:
            ServiceError: Redis is away for longer than the deadline.
        """
        await self._insist("create_groups", self._queue.create_groups)
        await self._insist("look", self._guard.look)
        await self._insist("keep_alive", self._keep_alive)

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
        await self._insist("sign_off", self._sign_off)

    async def _until_over(self, part: Coroutine[Any, Any, None]) -> None:
        """The parts of the worker end together, also where one fails: by a word, since a cancellation may
        be lost (ending.py) and what was cancelled would go on for ever."""
        try:
            await part
        finally:
            self._over.set()
            self._guard.stop()

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as batches:
            await self._take_batches(batches)
            await self._finish()
        if self._held:
            await self._give_back(list(self._held.values()))

    async def _take_batches(self, batches: asyncio.TaskGroup) -> None:
        """Until drained."""
        free = asyncio.Semaphore(self._settings.concurrency)
        while not (self._draining.is_set() or self._over.is_set()):
            if not self._guard.may_take():
                await self._guard.until_changed(BLOCK_MS / 1000)
                continue
            await free.acquire()
            leases = await self._take()
            if leases and not self._guard.may_take():
                await self._give_back(leases)
                leases = []
            if not leases:
                free.release()
                continue
            batch = batches.create_task(self._handle(leases))
            self._batches.add(batch)
            batch.add_done_callback(self._batches.discard)
            batch.add_done_callback(lambda _: free.release())

    async def _finish(self) -> None:
        """Wait for what is being judged; end it where the time for that is over."""
        if self._batches:
            hurried = asyncio.create_task(self._hurry.wait())
            done = asyncio.gather(*self._batches, return_exceptions=True)
            either: list[asyncio.Future[Any]] = [hurried, done]
            await asyncio.wait(either, timeout=self._settings.grace_s, return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
            if not done.done():
                logger.warning("giving back what was not judged in time", extra=fields(items=len(self._held)))
                # Which cancels the batches.
                done.cancel()
        self._hurry.set()

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
        self._metrics.taken(fresh)
        return fresh

    async def _beat(self) -> None:
        while not self._over.is_set():
            await wait_set(self._over, self._settings.lease_s / 3)
            await self._insist("keep_alive", self._keep_alive)
            if time.monotonic() >= self._next_tidy:
                self._next_tidy = time.monotonic() + self._gone_after_ms / 1000
                await self._insist("tidy", lambda: self._leases.tidy(self._gone_after_ms))

    async def _keep_alive(self) -> None:
        info = json.dumps({**self.describe(), "pid": os.getpid()})
        alive_s = max(1, round(self._settings.lease_s))
        await self._queue.keep_alive(self.name, list(self._held.values()), info, alive_s)

    # --- judging ---------------------------------------------------------------------------

    def _know_judge(self) -> None:
        info = self._backend.info
        self._revision = info.revision
        self._judges = {key: judge_info(info, rubric) for key, rubric in self._rubrics.items()}
        self._cache = VerdictCache(self._queue, self._judges, on=self._settings.cache and info.cacheable)

    async def _handle(self, leases: list[Lease]) -> None:
        if self._backend.info.revision != self._revision:
            self._know_judge()
        others = await self._insist("kinds", lambda: self._kinds.others(lease.group for lease in leases))
        now = time.time()
        live = await self._but_ended(leases, [self._hopeless(lease, now, others) for lease in leases])
        known = await self._insist("cached", lambda: self._cache.completions(live))
        if hits := [end.lease for end in known if end is not None]:
            # As suspect as the verdict that they repeat.
            await self._insist("note", lambda: self._guard.note(hits, now))
            self._metrics.cached(len(hits))
        live = await self._but_ended(live, known)
        batch = [lease for lease in live if lease.deliveries < ALONE_FROM_DELIVERY]
        alone = [[lease] for lease in live if lease.deliveries >= ALONE_FROM_DELIVERY]
        for group in [batch, *alone] if batch else alone:
            await self._judge(group)

    async def _but_ended(self, leases: list[Lease], ends: Sequence[Completion | None]) -> list[Lease]:
        """Store how some of the leases end; the others."""
        if done := [end for end in ends if end is not None]:
            await self._complete(done)
        return [lease for lease, end in zip(leases, ends, strict=True) if end is None]

    def _hopeless(self, lease: Lease, now: float, other_kinds: Mapping[str, str]) -> Completion | None:
        return hopeless(
            lease,
            now,
            max_deliveries=self._settings.max_deliveries,
            rubrics=self._rubrics,
            kind=self._backend.info.score_kind,
            other_kinds=other_kinds,
        )

    async def _judge(self, leases: Sequence[Lease]) -> None:
        if self._hurry.is_set():
            # They go back with all that is held.
            return
        if not self._guard.may_judge():
            # Lost while these waited for their turn.
            await self._give_back(leases)
            return
        number, began, losses = next(self._numbers), time.time(), self._guard.distrusted
        self._guard.begin(number, began)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._insist("note", lambda: self._guard.note(leases, began)))
                asked = both.create_task(self._ask(leases))
            await self._settle(leases, asked.result(), began, losses)
        finally:
            self._guard.end(number)

    async def _settle(
        self, leases: Sequence[Lease], result: _Answered | BackendUnavailable, began: float, losses: int
    ) -> None:
        """Store what the backend gave, or give the items back where it is worth nothing."""
        ended = time.time()
        if isinstance(result, BackendUnavailable):
            self._guard.unavailable(result)
            await self._give_back(leases)
            return
        self._guard.answered(leases, result.answers, whole_batch_failed=result.broke)
        if self._guard.distrusted != losses:
            await self._give_back(leases)
            return
        done = []
        for lease, answer in zip(leases, result.answers, strict=True):
            verdict = verdict_json(lease, answer, self._judges[lease.rubric], began=began, ended=ended)
            kept = self._cache.key(lease) if isinstance(answer, Grade) else ""
            done.append(Completion(lease, verdict, cache_key=kept))
        await self._complete(done)
        if self._guard.distrusted != losses:
            self._guard.stored_late()
        self._pace.took(time.time() - began)
        self._metrics.judged(leases, result.answers, began=began, ended=ended)
        failed = [answer.code.value for answer in result.answers if isinstance(answer, GradeFailure)]
        logger.info(
            "judged a batch",
            extra=fields(items=len(leases), failed=failed, ms=round((ended - began) * 1000, 1)),
        )

    async def _ask(self, leases: Sequence[Lease]) -> _Answered | BackendUnavailable:
        requests = [
            GradeRequest(self._rubrics[lease.rubric], *lease.text(), rationale=lease.rationale)
            for lease in leases
        ]
        try:
            answers = await judge_traced(self._backend, leases, requests)
        except BackendUnavailable as error:
            return error
        except BackendError as error:
            logger.error("the backend failed on a batch", extra=fields(items=len(requests), error=str(error)))
            return _Answered([GradeFailure(FailureCode.SERVER_ERROR, str(error))] * len(requests), broke=True)
        if len(answers) != len(requests):
            message = f"the backend gave {len(answers)} answers to {len(requests)} items"
            logger.error(message)
            return _Answered([GradeFailure(FailureCode.SERVER_ERROR, message)] * len(requests), broke=True)
        return _Answered(answers)

    async def _give_back(self, leases: Sequence[Lease]) -> None:
        """Uncounted: the items have done nothing wrong."""
        held = [lease for lease in leases if (lease.stream, lease.entry) in self._held]
        await self._insist("release", lambda: self._leases.release(self.name, held))
        for lease in held:
            self._held.pop((lease.stream, lease.entry), None)
        self._next_reclaim = 0.0
        logger.warning("gave items back", extra=fields(items=len(held)))

    async def _complete(self, completions: Sequence[Completion]) -> None:
        await self._insist("complete", lambda: self._queue.complete(completions))
        self._metrics.dead(sum(completion.dead for completion in completions))
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
                if self._draining.is_set() and (self._hurry.is_set() or not self._held):
                    held = f"{len(self._held)} items in hand go to another worker when their lease is over"
                    raise ServiceError(f"stopped while Redis was away; {held}") from error
                logger.warning("Redis is away", extra=fields(call=what, error=type(error).__name__))
            await asyncio.sleep(pause_s)
            pause_s = min(1.0, pause_s * 2)
