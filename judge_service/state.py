"""How the service stands, read from Redis in one round trip."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from judge_service.queue.streams import GROUP
from shared.redis_keys import JudgeKeys
from shared.wire import Priority


@dataclass(frozen=True)
class StreamState:
    depth: int
    """Items waiting and in flight."""
    inflight: int
    """Those that a worker holds."""
    oldest_age_s: float
    """Of the oldest that has no verdict; 0 where there is none."""


@dataclass(frozen=True)
class ServiceState:
    streams: Mapping[str, StreamState]
    """By priority."""
    limit: int
    dead_letters: int
    workers: tuple[dict[str, Any], ...]
    """What each worker that is alive says of itself."""


@dataclass(frozen=True)
class RedisHealth:
    memory: int
    """Bytes."""
    memory_limit: int
    """Bytes; 0: none."""
    durable: bool
    """It keeps an append-only file, and could write it last time."""


async def read_redis_health(redis: Redis) -> RedisHealth | None:
    """None where Redis does not let us ask (INFO is not among the commands of our user there).

    Raises redis.RedisError.
    """
    async with redis.pipeline(transaction=False) as pipe:
        pipe.info("memory")
        pipe.info("persistence")
        try:
            memory, persistence = await pipe.execute()
        except ResponseError:
            return None
    durable = bool(persistence["aof_enabled"]) and persistence["aof_last_write_status"] == "ok"
    return RedisHealth(int(memory["used_memory"]), int(memory["maxmemory"]), durable)


async def read_state(redis: Redis, keys: JudgeKeys, limit: int) -> ServiceState:
    """Raises redis.RedisError."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.zrange(keys.workers, 0, -1)
        pipe.xlen(keys.dead)
        for stream in keys.streams():
            pipe.xlen(stream)
            pipe.xrange(stream, count=1)
            pipe.xpending(stream, GROUP)
        # No group yet, before the first worker: its reply is an error, and nothing is in flight.
        replies: Any = await pipe.execute(raise_on_error=False)
    broken = [one for one in replies if isinstance(one, Exception) and "NOGROUP" not in str(one)]
    if broken:
        raise broken[0]
    (seconds, micros), members, dead, *rest = replies
    now = int(seconds) + int(micros) / 1e6
    streams = {}
    for at, priority in enumerate(Priority):
        depth, oldest, pending = rest[3 * at : 3 * at + 3]
        inflight = 0 if isinstance(pending, ResponseError) else int(pending["pending"])
        began = int(oldest[0][0].partition(b"-")[0]) / 1000 if oldest else now
        streams[priority.value] = StreamState(int(depth), inflight, max(0.0, now - began))
    names = [raw.decode() for raw in members]
    infos: Any = await redis.mget([keys.worker(name) for name in names]) if names else []
    workers = tuple(json.loads(info) for info in infos if info is not None)
    return ServiceState(streams, limit, int(dead), workers)
