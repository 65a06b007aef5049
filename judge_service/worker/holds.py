"""An operator's word to the workers: take nothing until further notice, all of you or one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from shared.redis_keys import JudgeKeys

ALL = "*"
_PROBE = "probe"


@dataclass(frozen=True)
class Hold:
    reason: str
    since: float
    """Unix seconds by Redis's clock."""


@dataclass(frozen=True)
class Orders:
    """What stands for one worker."""

    hold: Hold | None
    probe_asked: float
    """Unix seconds at which workers were last asked to try their judge at once; 0: never."""


class Holds:
    """Raises redis.RedisError where Redis is away."""

    def __init__(self, redis: Redis, keys: JudgeKeys) -> None:
        self._redis = redis
        self._key = keys.holds

    async def place(self, worker: str, reason: str) -> Hold:
        """`worker`: a name, or `ALL`."""
        hold = Hold(reason, await self._now())
        await self._redis.hset(self._key, worker, json.dumps({"reason": hold.reason, "since": hold.since}))
        return hold

    async def lift(self, worker: str) -> None:
        """`ALL` lifts every hold. Either way workers whose breaker is open try their judge at once."""
        now = await self._now()
        async with self._redis.pipeline(transaction=True) as pipe:
            if worker == ALL:
                pipe.delete(self._key)
            else:
                pipe.hdel(self._key, worker)
            pipe.hset(self._key, _PROBE, str(now))
            await pipe.execute()

    async def forget(self, worker: str) -> None:
        """It is gone."""
        await self._redis.hdel(self._key, worker)

    async def orders(self, worker: str) -> Orders:
        found: Any = await self._redis.hmget(self._key, [ALL, worker, _PROBE])
        for_all, own, asked = found
        raw = for_all or own
        return Orders(_hold(raw) if raw is not None else None, float(asked or 0))

    async def placed(self) -> Mapping[str, Hold]:
        """By worker, or `ALL`."""
        found: Any = await self._redis.hgetall(self._key)
        return {name.decode(): _hold(raw) for name, raw in found.items() if name.decode() != _PROBE}

    async def _now(self) -> float:
        seconds, micros = await self._redis.time()
        return float(int(seconds)) + int(micros) / 1e6


def _hold(raw: bytes) -> Hold:
    values = json.loads(raw)
    return Hold(str(values["reason"]), float(values["since"]))
