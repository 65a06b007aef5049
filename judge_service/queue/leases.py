"""Giving leases back, and clearing away the consumers of workers that are gone."""

from __future__ import annotations

from collections.abc import Iterable

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from judge_service.queue.items import Lease
from judge_service.queue.scripts import load_script
from judge_service.queue.streams import GROUP
from shared.redis_keys import JudgeKeys

RELEASED = "released"
"""The consumer under which stands what was given back, until a worker takes it over."""

OVERDUE_MS = 2 * 3_600_000
"""Longer than any lease may be."""

PER_CALL = 1000


class Leases:
    """Raises redis.RedisError where Redis is away; every call may simply be made again."""

    def __init__(self, redis: Redis, keys: JudgeKeys) -> None:
        self._redis = redis
        self._streams = keys.streams()
        self._workers = keys.workers
        self._release = load_script(redis, "release")
        self._tidy = load_script(redis, "tidy")

    async def release(self, worker: str, leases: Iterable[Lease]) -> int:
        """Give back uncounted what this worker holds of these; how many that were."""
        entries = [(str(self._streams.index(lease.stream) + 1), lease.entry) for lease in leases]
        given = 0
        for first in range(0, len(entries), PER_CALL):
            args: list[str | int] = [GROUP, worker, RELEASED, OVERDUE_MS]
            for stream, entry in entries[first : first + PER_CALL]:
                args += [stream, entry]
            try:
                given += int(await self._release(keys=self._streams, args=args))
            except ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                # Redis came back without its data: nobody holds anything.
        return given

    async def tidy(self, idle_ms: int, going: str = "") -> int:
        """Delete consumers that hold nothing: `going`, and those not alive for `idle_ms`; how many."""
        return int(await self._tidy(keys=[self._workers, *self._streams], args=[GROUP, idle_ms, going]))
