"""What a worker has in hand, and its calls to a Redis that may be away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from redis import exceptions as redis_errors

from judge_service.queue.leases import Leases
from judge_service.queue.streams import Completion, JudgementQueue, Lease
from judge_service.worker.metrics import WorkerMetrics
from shared.errors import ServiceError
from shared.logs import fields

logger = logging.getLogger(__name__)

REDIS_AWAY = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.OutOfMemoryError,
    redis_errors.ReadOnlyError,
)
"""Heals by itself or by an operator; nothing is lost by asking again."""

T = TypeVar("T")


@dataclass(frozen=True)
class Stopping:
    """How far a worker is with its end."""

    draining: asyncio.Event = field(default_factory=asyncio.Event)
    """It takes nothing more."""
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    """It begins nothing more, and gives back what it holds."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Its parts end."""


class Hand:
    """The leases that a worker holds. They come by `hold`, and go by `complete` or `give_back`."""

    def __init__(
        self,
        queue: JudgementQueue,
        worker: str,
        stopping: Stopping,
        metrics: WorkerMetrics,
        redis_deadline_s: float,
    ) -> None:
        self._queue = queue
        self._worker = worker
        self._stopping = stopping
        self._metrics = metrics
        self._redis_deadline_s = redis_deadline_s
        self._leases = Leases(queue.redis, queue.keys)
        self._held: dict[tuple[str, str], Lease] = {}
        self.gave_back = False
        """Since it was last set to False: something waits to be taken over at once."""
        metrics.held.set_function(lambda: len(self._held))

    def __len__(self) -> int:
        return len(self._held)

    @property
    def leases(self) -> list[Lease]:
        return list(self._held.values())

    def hold(self, leases: Iterable[Lease]) -> list[Lease]:
        """Those that are new: what is in hand already comes back when its heartbeats were late."""
        fresh = [lease for lease in leases if (lease.stream, lease.entry) not in self._held]
        self._held.update({(lease.stream, lease.entry): lease for lease in fresh})
        self._metrics.taken(fresh)
        return fresh

    async def complete(self, completions: Sequence[Completion]) -> None:
        await self.insist("complete", lambda: self._queue.complete(completions))
        self._metrics.dead(sum(completion.dead for completion in completions))
        for completion in completions:
            self._held.pop((completion.lease.stream, completion.lease.entry), None)

    async def give_back(self, leases: Sequence[Lease]) -> None:
        """Uncounted: the items have done nothing wrong."""
        held = [lease for lease in leases if (lease.stream, lease.entry) in self._held]
        await self.insist("release", lambda: self._leases.release(self._worker, held))
        for lease in held:
            self._held.pop((lease.stream, lease.entry), None)
        self.gave_back = True
        logger.warning("gave items back", extra=fields(items=len(held)))

    async def insist(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """Call until Redis answers. Every call to the queue may be made again.

        Raises:
            ServiceError: Redis is away for longer than the deadline, or while the worker stops.
        """
        until = time.monotonic() + self._redis_deadline_s
        pause_s = 0.05
        while True:
            try:
                return await call()
            except REDIS_AWAY as error:
                if time.monotonic() > until:
                    raise ServiceError(
                        f"Redis did not take {what} for {self._redis_deadline_s:g} s: {error}"
                    ) from error
                if self._stopping.draining.is_set() and (self._stopping.hurry.is_set() or not self._held):
                    held = f"{len(self._held)} items in hand go to another worker when their lease is over"
                    raise ServiceError(f"stopped while Redis was away; {held}") from error
                logger.warning("Redis is away", extra=fields(call=what, error=type(error).__name__))
            await asyncio.sleep(pause_s)
            pause_s = min(1.0, pause_s * 2)
