"""From a batch in hand to stored verdicts: what ends unjudged, what is known, what the backend says."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from judge_service.backends.base import (
    Backend,
    BackendError,
    BackendUnavailable,
    Grade,
    GradeFailure,
    GradeRequest,
)
from judge_service.queue.cache import VerdictCache
from judge_service.queue.streams import Completion, JudgementQueue, Lease
from judge_service.worker.ask import judge_traced
from judge_service.worker.endings import hopeless
from judge_service.worker.guard import Guard
from judge_service.worker.hand import Hand, Stopping
from judge_service.worker.kinds import GroupKinds
from judge_service.worker.metrics import WorkerMetrics
from judge_service.worker.pace import Pace
from judge_service.worker.verdicts import judge_info, verdict_json
from shared.logs import fields
from shared.rubrics.rubric import Rubric
from shared.wire import FailureCode

logger = logging.getLogger(__name__)

ALONE_FROM_DELIVERY = 3
"""From this delivery on an item is judged alone, lest one that breaks the backend takes its batch along."""


@dataclass(frozen=True)
class _Answered:
    answers: Sequence[Grade | GradeFailure]
    broke: bool = False
    """The backend failed on the batch as a whole."""


class Judging:
    def __init__(
        self,
        queue: JudgementQueue,
        backend: Backend,
        rubrics: Mapping[str, Rubric],
        hand: Hand,
        pace: Pace,
        metrics: WorkerMetrics,
        stopping: Stopping,
        *,
        max_deliveries: int,
        cache: bool,
    ) -> None:
        self._queue = queue
        self._backend = backend
        self._rubrics = rubrics
        self._hand = hand
        self._pace = pace
        self._metrics = metrics
        self._stopping = stopping
        self._max_deliveries = max_deliveries
        self._cache_on = cache
        self._kinds = GroupKinds(queue.redis, queue.keys, backend.info.score_kind, queue.result_ttl_s)
        self._numbers = itertools.count()
        self._know_judge()

    def _know_judge(self) -> None:
        info = self._backend.info
        self._revision = info.revision
        self._judges = {key: judge_info(info, rubric) for key, rubric in self._rubrics.items()}
        self._cache = VerdictCache(self._queue, self._judges, on=self._cache_on and info.cacheable)

    async def forget(self, leases: Sequence[Lease]) -> None:
        """Drop what the cache keeps of these. Raises redis.RedisError."""
        await self._cache.forget(leases)

    async def handle(self, leases: list[Lease], guard: Guard) -> None:
        """Bring each to its end, or give it back."""
        if self._backend.info.revision != self._revision:
            self._know_judge()
        insist = self._hand.insist
        others = await insist("kinds", lambda: self._kinds.others(lease.group for lease in leases))
        now = time.time()
        live = await self._but_ended(leases, [self._hopeless(lease, now, others) for lease in leases])
        known = await insist("cached", lambda: self._cache.completions(live))
        if hits := [end.lease for end in known if end is not None]:
            # As suspect as the verdict that they repeat.
            await insist("note", lambda: guard.note(hits, now))
            self._metrics.cached(len(hits))
        live = await self._but_ended(live, known)
        batch = [lease for lease in live if lease.deliveries < ALONE_FROM_DELIVERY]
        alone = [[lease] for lease in live if lease.deliveries >= ALONE_FROM_DELIVERY]
        for group in [batch, *alone] if batch else alone:
            await self._judge(group, guard)

    async def _but_ended(self, leases: list[Lease], ends: Sequence[Completion | None]) -> list[Lease]:
        """Store how some of the leases end; the others."""
        if done := [end for end in ends if end is not None]:
            await self._hand.complete(done)
        return [lease for lease, end in zip(leases, ends, strict=True) if end is None]

    def _hopeless(self, lease: Lease, now: float, other_kinds: Mapping[str, str]) -> Completion | None:
        return hopeless(
            lease,
            now,
            max_deliveries=self._max_deliveries,
            rubrics=self._rubrics,
            kind=self._backend.info.score_kind,
            other_kinds=other_kinds,
        )

    async def _judge(self, leases: Sequence[Lease], guard: Guard) -> None:
        if self._stopping.hurry.is_set():
            # They go back with all that is held.
            return
        if not guard.may_judge():
            # Lost while these waited for their turn.
            await self._hand.give_back(leases)
            return
        number, began, losses = next(self._numbers), time.time(), guard.distrusted
        guard.begin(number, began)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._hand.insist("note", lambda: guard.note(leases, began)))
                asked = both.create_task(self._ask(leases))
            await self._settle(leases, asked.result(), guard, began, losses)
        finally:
            guard.end(number)

    async def _settle(
        self,
        leases: Sequence[Lease],
        result: _Answered | BackendUnavailable,
        guard: Guard,
        began: float,
        losses: int,
    ) -> None:
        """Store what the backend gave, or give the items back where it is worth nothing.

        `losses`: times that the judge had lost trust when it was asked.
        """
        ended = time.time()
        if isinstance(result, BackendUnavailable):
            guard.unavailable(result)
            await self._hand.give_back(leases)
            return
        guard.answered(leases, result.answers, whole_batch_failed=result.broke)
        if guard.distrusted != losses:
            await self._hand.give_back(leases)
            return
        done = []
        for lease, answer in zip(leases, result.answers, strict=True):
            verdict = verdict_json(lease, answer, self._judges[lease.rubric], began=began, ended=ended)
            kept = self._cache.key(lease) if isinstance(answer, Grade) else ""
            done.append(Completion(lease, verdict, cache_key=kept))
        await self._hand.complete(done)
        if guard.distrusted != losses:
            guard.stored_late()
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
