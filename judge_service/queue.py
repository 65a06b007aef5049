"""The queue of items to judge, on Redis Streams: submit, take, keep alive, complete.

One stream a priority, one consumer group from the stream's start. A stream entry lives until its
verdict is stored, and goes in the same script, so that what was acknowledged reaches exactly one
verdict whoever dies in between. Only commands that Redis 6.2 and Valkey share.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import ResponseError

from shared.redis_keys import JudgeKeys
from shared.wire import ChatMessage, JudgementItem, Priority, content_hash

GROUP = "judges"
"""The consumer group on every stream."""

DEAD_LETTERS_KEPT = 10_000

SOCKET_TIMEOUT_S = 10.0
"""Longer than any blocking read."""


def connect(url: str) -> Redis:
    """A client that reconnects by itself for about a second before it gives up on a call."""
    pool = BlockingConnectionPool.from_url(
        url,
        # The replies of stream commands differ in shape between the protocols.
        protocol=2,
        max_connections=64,
        timeout=5,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=2,
        retry=Retry(ExponentialBackoff(cap=0.3, base=0.02), 6),
    )
    return Redis.from_pool(pool)


@dataclass(frozen=True)
class NewItem:
    id: str
    fingerprint: str
    """Same id and same fingerprint: the same judgement."""
    body: str
    """JSON of prompt and response."""


def new_item(judgement_id: str, item: JudgementItem, rubric: str) -> NewItem:
    return NewItem(
        id=judgement_id,
        fingerprint=f"{content_hash(item.prompt, item.response)}:{rubric}",
        body=item.model_dump_json(include={"prompt", "response"}),
    )


@dataclass(frozen=True)
class Admitted:
    verdicts: tuple[bytes | None, ...]
    """In the order of the batch: the JSON of those that had one already."""


@dataclass(frozen=True)
class Conflict:
    """These ids were used before, with other text or another rubric. Nothing was admitted."""

    ids: tuple[str, ...]


@dataclass(frozen=True)
class QueueFull:
    """Nothing was admitted."""

    depth: int
    limit: int


Admission = Admitted | Conflict | QueueFull


@dataclass(frozen=True)
class Terminal:
    verdict: bytes
    """JSON of a `shared.wire.Verdict`."""


@dataclass(frozen=True)
class Waiting:
    """Queued or in flight."""


@dataclass(frozen=True)
class Unknown:
    """Never submitted, or its verdict's time was up, or Redis lost it."""


Found = Terminal | Waiting | Unknown


@dataclass(frozen=True)
class Lease:
    """An item that this worker holds, as long as it keeps it alive."""

    id: str
    stream: str
    entry: str
    rubric: str
    body: str
    group: str
    submitted_at: float
    """Unix seconds by Redis's clock."""
    expires_at: float | None
    deliveries: int
    """Times that it was handed to a worker, this one included."""

    def text(self) -> tuple[str | list[ChatMessage], str]:
        """(prompt, response)."""
        raw = json.loads(self.body)
        prompt = raw["prompt"]
        if isinstance(prompt, str):
            return prompt, raw["response"]
        # It was validated when it was submitted.
        return [ChatMessage.model_construct(**turn) for turn in prompt], raw["response"]


@dataclass(frozen=True)
class Completion:
    lease: Lease
    verdict: str
    """JSON of a `shared.wire.Verdict`."""
    dead: bool = False
    """Keep its text among the dead letters."""


class JudgementQueue:
    """Raises redis.RedisError where Redis is away; every call may simply be made again."""

    def __init__(
        self, redis: Redis, keys: JudgeKeys, *, limit: int = 100_000, result_ttl_s: int = 86_400
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._limit = limit
        self._ttl_s = result_ttl_s
        self._submit = _script(redis, "submit")
        self._fetch = _script(redis, "fetch")
        self._reclaim = _script(redis, "reclaim")
        self._complete = _script(redis, "complete")
        self._cursors = ["0-0" for _ in keys.streams()]

    @property
    def limit(self) -> int:
        return self._limit

    # --- the client's side -----------------------------------------------------------------

    async def submit(
        self,
        items: Sequence[NewItem],
        *,
        rubric: str,
        priority: Priority,
        expires_at: float | None = None,
        group: str | None = None,
    ) -> Admission:
        """Admit all or none. Sending the same again is no second judgement."""
        stream = self._keys.stream(priority)
        others = [name for name in self._keys.streams() if name != stream]
        keys = [stream, *others, self._keys.group(group) if group else ""]
        keys += [self._keys.item(item.id) for item in items]
        args: list[str | float] = [self._limit, rubric, expires_at or "", group or ""]
        for item in items:
            args += [item.id, item.fingerprint, item.body]
        outcome, *rest = await self._submit(keys=keys, args=args)
        if outcome == b"conflict":
            return Conflict(tuple(judgement_id.decode() for judgement_id in rest))
        if outcome == b"full":
            return QueueFull(depth=int(rest[0]), limit=self._limit)
        return Admitted(tuple(verdict or None for verdict in rest))

    async def lookup(self, ids: Sequence[str]) -> list[Found]:
        """How each stands, in the order asked."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for judgement_id in ids:
                pipe.hmget(self._keys.item(judgement_id), "fingerprint", "verdict")
            rows = await pipe.execute()
        return [
            Unknown() if fingerprint is None else Waiting() if verdict is None else Terminal(verdict)
            for fingerprint, verdict in rows
        ]

    async def unfinished(self, group: str, count: int = 256) -> list[Lease]:
        """Some of a group's items that have no verdict yet, as what `complete` takes. Empty: none left."""
        key = self._keys.group(group)
        members: Any = await self._redis.srandmember(key, count)
        ids = [raw.decode() for raw in members]
        async with self._redis.pipeline(transaction=False) as pipe:
            for judgement_id in ids:
                pipe.hmget(self._keys.item(judgement_id), "stream", "entry")
            rows = await pipe.execute() if ids else []
        return [
            Lease(
                id=judgement_id,
                stream=(stream or b"").decode(),
                entry=(entry or b"").decode(),
                rubric="",
                body="",
                group=group,
                submitted_at=_entry_time(entry) if entry else 0.0,
                expires_at=None,
                deliveries=0,
            )
            for judgement_id, (stream, entry) in zip(ids, rows, strict=True)
        ]

    async def depth(self) -> dict[str, int]:
        """Items waiting and in flight, by priority."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for stream in self._keys.streams():
                pipe.xlen(stream)
            lengths = await pipe.execute()
        return {priority.value: int(n) for priority, n in zip(Priority, lengths, strict=True)}

    async def check_writable(self) -> None:
        """Raises redis.RedisError where Redis is away or takes no writes."""
        await self._redis.set(self._keys.writable, "1", ex=10)

    @asynccontextmanager
    async def verdict_news(self) -> AsyncIterator[PubSub]:
        """Subscribed to the ids that become terminal, newline-separated in each message."""
        async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe(self._keys.verdicts)
            yield pubsub

    # --- the worker's side -----------------------------------------------------------------

    async def create_groups(self) -> None:
        for stream in self._keys.streams():
            try:
                # From the stream's start: the default would skip what was submitted before.
                await self._redis.xgroup_create(stream, GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    async def fetch(self, worker: str, count: int, block_ms: int) -> list[Lease]:
        """Up to `count` new items (a few more after an idle wait), the first priority first.

        Waits up to `block_ms` milliseconds for the first; 0 does not wait.
        """
        try:
            taken = await self._fetch(keys=self._keys.streams(), args=[GROUP, worker, count])
            if taken or block_ms <= 0:
                return [_lease(stream, *entry) for stream, entries in taken for entry in entries]
            # A script cannot wait, so wait for the first one here; the next call takes what is beside it.
            first: Any = await self._redis.xreadgroup(
                GROUP, worker, dict.fromkeys(self._keys.streams(), ">"), count=1, block=block_ms
            )
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            # Redis came back without its data, or somebody removed the group.
            await self.create_groups()
            return []
        return [
            # redis-py makes a map of the fields; a script's reply has them flat.
            _lease(stream, entry, [part for pair in values.items() for part in pair])
            for stream, entries in first
            for entry, values in entries
        ]

    async def reclaim(self, worker: str, lease_ms: int, count: int) -> list[Lease]:
        """Take over up to `count` items whose worker has not kept them alive for `lease_ms`."""
        try:
            cursors, *taken = await self._reclaim(
                keys=self._keys.streams(), args=[GROUP, worker, lease_ms, count, *self._cursors]
            )
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            await self.create_groups()
            return []
        self._cursors = [cursor.decode() for cursor in cursors]
        return [_lease(stream, entry, fields, int(times)) for stream, entry, fields, times in taken]

    async def keep_alive(self, worker: str, leases: Sequence[Lease], info: str, alive_s: int) -> None:
        """Heartbeat: the leases run anew, and the worker counts as alive for `alive_s` seconds.

        `info` is JSON that readiness reports.
        """
        by_stream: dict[str, list[str]] = {}
        for lease in leases:
            by_stream.setdefault(lease.stream, []).append(lease.entry)
        seconds, _ = await self._redis.time()
        async with self._redis.pipeline(transaction=False) as pipe:
            for stream, entries in by_stream.items():
                # JUSTID: a heartbeat is no delivery.
                pipe.xclaim(stream, GROUP, worker, min_idle_time=0, message_ids=entries, justid=True)  # type: ignore[arg-type]
            pipe.set(self._keys.worker(worker), info, ex=alive_s)
            pipe.zadd(self._keys.workers, {worker: seconds + alive_s})
            pipe.zremrangebyscore(self._keys.workers, "-inf", seconds - 1)
            await pipe.execute()

    async def sign_off(self, worker: str) -> None:
        """The worker is going."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(self._keys.worker(worker))
            pipe.zrem(self._keys.workers, worker)
            await pipe.execute()

    async def workers(self) -> list[dict[str, Any]]:
        """What each worker that is alive says of itself."""
        members: Any = await self._redis.zrange(self._keys.workers, 0, -1)
        names = [raw.decode() for raw in members]
        if not names:
            return []
        infos = await self._redis.mget([self._keys.worker(name) for name in names])
        return [json.loads(info) for info in infos if info is not None]

    async def complete(self, completions: Sequence[Completion]) -> int:
        """Store verdicts and acknowledge; how many were stored. The first verdict of an item stays."""
        keys = [self._keys.dead]
        args: list[str | int] = [GROUP, self._ttl_s, self._keys.verdicts, DEAD_LETTERS_KEPT]
        for done in completions:
            lease = done.lease
            group = self._keys.group(lease.group) if lease.group else ""
            keys += [self._keys.item(lease.id), lease.stream, group]
            args += [lease.id, lease.entry, done.verdict, lease.body if done.dead else ""]
        return int(await self._complete(keys=keys, args=args))

    async def close(self) -> None:
        await self._redis.aclose()


def _script(redis: Redis, name: str) -> AsyncScript:
    source = resources.files("judge_service").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    return redis.register_script(source)


def _lease(stream: bytes, entry: bytes, fields: list[bytes], deliveries: int = 1) -> Lease:
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    expires_at = values[b"expires_at"]
    return Lease(
        id=values[b"id"].decode(),
        stream=stream.decode(),
        entry=entry.decode(),
        rubric=values[b"rubric"].decode(),
        body=values[b"body"].decode(),
        group=values[b"group"].decode(),
        submitted_at=_entry_time(entry),
        expires_at=float(expires_at) if expires_at else None,
        deliveries=deliveries,
    )


def _entry_time(entry: bytes) -> float:
    """An entry's id begins with the milliseconds at which it was added."""
    return int(entry.partition(b"-")[0]) / 1000
