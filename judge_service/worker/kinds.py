"""One group never mixes score kinds: a probability, a mean of samples and a classifier's number differ.

The kind of the judge that first takes an item of a group is the group's. Another worker whose judge gives
another kind fails the group's items, saying so, rather than give numbers that cannot be compared.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from redis.asyncio import Redis

from shared.redis_keys import JudgeKeys
from shared.wire import ScoreKind

REMEMBERED_S = 60.0
MOST_REMEMBERED = 10_000


class GroupKinds:
    """Raises redis.RedisError where Redis is away."""

    def __init__(self, redis: Redis, keys: JudgeKeys, kind: ScoreKind, ttl_s: int) -> None:
        self._redis = redis
        self._keys = keys
        self._kind = kind
        self._ttl_s = ttl_s
        self._known: dict[str, str] = {}
        self._until = 0.0

    async def others(self, groups: Iterable[str]) -> dict[str, str]:
        """Those of the groups whose verdicts are of another kind, and of which."""
        asked = {group for group in groups if group}
        if time.monotonic() > self._until or len(self._known) > MOST_REMEMBERED:
            self._known.clear()
            # Looked up again now and then, so that a group that is still at work does not run out.
            self._until = time.monotonic() + min(REMEMBERED_S, self._ttl_s / 2)
        if new := sorted(asked - self._known.keys()):
            async with self._redis.pipeline(transaction=False) as pipe:
                for group in new:
                    key = self._keys.kind(group)
                    pipe.set(key, self._kind.value, ex=self._ttl_s, nx=True)
                    pipe.expire(key, self._ttl_s)
                    pipe.get(key)
                replies: list[Any] = await pipe.execute()
            for group, kind in zip(new, replies[2::3], strict=True):
                self._known[group] = kind.decode()
        return {group: kind for group in asked if (kind := self._known[group]) != self._kind.value}
