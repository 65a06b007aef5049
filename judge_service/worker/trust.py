"""What a worker has judged since its judge last passed its control pairs, and how that becomes suspect.

The list stands in Redis, since the worker may die before it finds out; whoever finds the same judge wanting
next, itself started anew perhaps, then marks what a dead worker left. Text is noted before it is judged, so
the list is never short; what nobody vouches for within the verdicts' own time runs out with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from judge_service.backends.base import BackendInfo
from judge_service.queue.items import Lease
from judge_service.queue.scripts import load_script
from shared.redis_keys import JudgeKeys

AT_ONCE = 500


def judge_digest(info: BackendInfo) -> str:
    """The same for workers with the same judge. Not its revision: a change of that is what is looked for."""
    return hashlib.sha256(f"{info.kind}\0{info.model}".encode()).hexdigest()[:16]


class Unvouched:
    """Raises redis.RedisError where Redis is away; every call may simply be made again."""

    def __init__(self, redis: Redis, keys: JudgeKeys, judge: str, worker: str, ttl_s: int) -> None:
        self._redis = redis
        self._keys = keys
        self._judge = judge
        self._worker = worker
        self._ttl_s = ttl_s
        self._mark = load_script(redis, "suspect")

    async def note(self, leases: Sequence[Lease], began: float) -> None:
        """These are about to be judged, at `began` (unix seconds by this worker's clock)."""
        own, index = self._keys.unvouched(self._judge, self._worker), self._keys.unvouched(self._judge)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(own, {f"{lease.group} {lease.id}": began for lease in leases})
            pipe.expire(own, self._ttl_s)
            pipe.zadd(index, {self._worker: began})
            pipe.expire(index, self._ttl_s)
            await pipe.execute()

    async def vouch(self, until: float) -> None:
        """The judge was right after `until`, so what it had begun before then stands."""
        await self._redis.zremrangebyscore(
            self._keys.unvouched(self._judge, self._worker), "-inf", f"({until}"
        )

    async def mark(self) -> list[Lease]:
        """Mark what this worker, and dead ones with the same judge, judged since their last good control.

        Returns:
            Those marked now, as leases without entry or text, for the cache to forget.
        """
        index = self._keys.unvouched(self._judge)
        members: Any = await self._redis.zrange(index, 0, -1)
        alive = await self._alive()
        marked: list[Lease] = []
        for worker in [raw.decode() for raw in members]:
            if worker == self._worker:
                marked += await self._mark_list(worker, dead=False)
            elif worker not in alive:
                marked += await self._mark_list(worker, dead=True)
                await self._redis.zrem(index, worker)
        return marked

    async def _alive(self) -> set[str]:
        seconds, _ = await self._redis.time()
        members: Any = await self._redis.zrangebyscore(self._keys.workers, int(seconds), "+inf")
        return {raw.decode() for raw in members}

    async def _mark_list(self, worker: str, *, dead: bool) -> list[Lease]:
        key = self._keys.unvouched(self._judge, worker)
        marked: list[Lease] = []
        skip = 0
        while members := await self._page(key, skip):
            pairs = [member.split(" ") for member in members]
            args = [part for group, judgement_id in pairs for part in (group, judgement_id)]
            outcomes: Any = await self._mark(
                keys=[self._keys.item(judgement_id) for _, judgement_id in pairs],
                args=[self._keys.suspects(""), self._ttl_s, *args],
            )
            # Of a living worker, what has no verdict yet is in flight and may still get one.
            done = [m for m, outcome in zip(members, outcomes, strict=True) if dead or outcome != 0]
            if done:
                await self._redis.zrem(key, *done)
            skip += len(members) - len(done)
            marked += [
                _lease(group, judgement_id, outcome.decode())
                for (group, judgement_id), outcome in zip(pairs, outcomes, strict=True)
                if isinstance(outcome, bytes)
            ]
        return marked

    async def _page(self, key: str, skip: int) -> list[str]:
        members: Any = await self._redis.zrange(key, skip, skip + AT_ONCE - 1)
        return [raw.decode() for raw in members]


def _lease(group: str, judgement_id: str, fingerprint: str) -> Lease:
    content_hash, _, rubric = fingerprint.partition(":")
    return Lease(
        id=judgement_id,
        stream="",
        entry="",
        rubric=rubric,
        body="",
        group=group,
        submitted_at=0.0,
        expires_at=None,
        deliveries=0,
        content_hash=content_hash,
    )


async def suspects_of(redis: Redis, keys: JudgeKeys, group: str) -> list[str]:
    """Ids of the group's verdicts that turned suspect, sorted."""
    members: Any = await redis.smembers(keys.suspects(group))
    return sorted(raw.decode() for raw in members)
