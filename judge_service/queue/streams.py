"""The queue of items to judge, on Redis Streams: submit, take, keep alive, complete.

One stream a priority, one consumer group from the stream's start. A stream entry lives until its
verdict is stored, and goes in the same script, so that what was acknowledged reaches exactly one
verdict whoever dies in between. Only commands that Redis 6.2 and Valkey share.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from importlib import resources
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError, ResponseError

from judge_service.queue.coalesce import Coalescer
from judge_service.queue.items import Admission as Admission
from judge_service.queue.items import Admitted as Admitted
from judge_service.queue.items import Completion as Completion
from judge_service.queue.items import Conflict as Conflict
from judge_service.queue.items import Fetched as Fetched
from judge_service.queue.items import Found as Found
from judge_service.queue.items import Gone as Gone
from judge_service.queue.items import Lease as Lease
from judge_service.queue.items import NewItem as NewItem
from judge_service.queue.items import QueueFull as QueueFull
from judge_service.queue.items import Submission as Submission
from judge_service.queue.items import Terminal as Terminal
from judge_service.queue.items import Unknown as Unknown
from judge_service.queue.items import Waiting as Waiting
from judge_service.queue.items import entry_time, lease_of
from judge_service.queue.items import new_item as new_item
from shared.redis_keys import JudgeKeys
from shared.wire import FailedVerdict, FailureCode, Priority, Timings, VerdictError

GROUP = "judges"
"""The consumer group on every stream."""

DEAD_LETTERS_KEPT = 10_000

MAX_ADMITTED_AT_ONCE = 1024
"""Items in one script call. Redis serves nobody else meanwhile."""

SOCKET_TIMEOUT_S = 10.0
"""Longer than any blocking read."""

TOO_LATE = "its expires_at had passed, or left less time than judging takes, when a worker came to it"
LOST = "its entry in the queue was deleted by hand; submit it again under another id"


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


class JudgementQueue:
    """Raises redis.RedisError where Redis is away; every call may simply be made again."""

    def __init__(
        self,
        redis: Redis,
        keys: JudgeKeys,
        *,
        limit: int = 100_000,
        result_ttl_s: int = 86_400,
        cache_ttl_s: int = 86_400,
    ) -> None:
        self.redis = redis
        self.keys = keys
        self.limit = limit
        self.result_ttl_s = result_ttl_s
        self._redis = redis
        self._keys = keys
        self._ttl_s = result_ttl_s
        self._cache_ttl_s = cache_ttl_s
        self._submit = _script(redis, "submit")
        self._lookup = _script(redis, "lookup")
        self._fetch = _script(redis, "fetch")
        self._reclaim = _script(redis, "reclaim")
        self._complete = _script(redis, "complete")
        self._admit = Coalescer(self._admit_all, lambda one: len(one.items), MAX_ADMITTED_AT_ONCE)
        self._streams = keys.streams()
        self._index = {stream: number for number, stream in enumerate(self._streams, 1)}
        self._cursors = ["0-0" for _ in self._streams]

    # --- the client's side -----------------------------------------------------------------

    async def submit(
        self,
        items: Sequence[NewItem],
        *,
        rubric: str,
        priority: Priority,
        expires_at: float | None = None,
        group: str | None = None,
        rationale: bool = False,
        traceparent: str | None = None,
    ) -> Admission:
        """Admit all or none. Sending the same again is no second judgement.

        Submissions that come while others are on their way to Redis go there together.
        """
        stream = self._index[self._keys.stream(priority)]
        return await self._admit(Submission(items, rubric, stream, expires_at, group, rationale, traceparent))

    async def _admit_all(self, submissions: list[Submission]) -> list[Admission]:
        keys = [*self._streams]
        args: list[str | bytes | float] = [self.limit, self._keys.group("")]
        for one in submissions:
            args += [one.stream, len(one.items), one.rubric, one.expires_at or "", one.group or ""]
            args += ["1" if one.rationale else "", one.traceparent or ""]
            for item in one.items:
                keys.append(self._keys.item(item.id))
                args += [item.id, item.fingerprint, item.body]
        outcomes = await self._submit(keys=keys, args=args)
        return [self._admission(one, outcome) for one, outcome in zip(submissions, outcomes, strict=True)]

    def _admission(self, submission: Submission, reply: list[Any]) -> Admission:
        outcome, *rest = reply
        if outcome == b"conflict":
            return Conflict(tuple(judgement_id.decode() for judgement_id in rest))
        if outcome == b"full":
            return QueueFull(depth=int(rest[0]), limit=self.limit)
        verdicts: list[bytes | None] = [None] * len(submission.items)
        for number, verdict in zip(rest[::2], rest[1::2], strict=True):
            verdicts[number - 1] = verdict
        return Admitted(tuple(verdicts))

    async def lookup(self, ids: Sequence[str]) -> list[Found]:
        """How each stands, in the order asked."""
        if not ids:
            return []
        lost = _failed_tail(FailureCode.SERVER_ERROR, LOST, queue_ms="0.0")
        rows = await self._lookup(
            keys=[self._keys.item(judgement_id) for judgement_id in ids],
            args=[self._ttl_s, self._keys.verdicts, lost, *ids],
        )
        return [_found(row) for row in rows]

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
                submitted_at=entry_time(entry) if entry else 0.0,
                expires_at=None,
                deliveries=0,
            )
            for judgement_id, (stream, entry) in zip(ids, rows, strict=True)
        ]

    async def depth(self) -> dict[str, int]:
        """Items waiting and in flight, by priority."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for stream in self._streams:
                pipe.xlen(stream)
            lengths = await pipe.execute()
        return {priority.value: int(n) for priority, n in zip(Priority, lengths, strict=True)}

    async def check_writable(self) -> None:
        """Raises redis.RedisError where Redis is away or takes no writes."""
        await self._redis.set(self._keys.writable, "1", ex=10)

    @asynccontextmanager
    async def verdict_news(self) -> AsyncIterator[PubSub]:
        """Subscribed to what becomes terminal: `verdicts_in` reads a message."""
        async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe(self._keys.verdicts)
            yield pubsub

    # --- the worker's side -----------------------------------------------------------------

    async def create_groups(self) -> None:
        for stream in self._streams:
            try:
                # From the stream's start: the default would skip what was submitted before.
                await self._redis.xgroup_create(stream, GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    async def fetch(self, worker: str, count: int, block_ms: int, *, judging_s: float = 0.0) -> Fetched:
        """Up to `count` new items, the first priority first.

        What expires within `judging_s` seconds is ended on the way. Where there are none, waits up to
        `block_ms` milliseconds and returns with the first that comes, one of each priority at most.
        """
        try:
            fetched = await self._take(worker, count, judging_s)
            if fetched.leases or fetched.dropped or block_ms <= 0:
                return fetched
            # A script cannot wait, so wait here for the first one.
            first: Any = await self._redis.xreadgroup(
                GROUP, worker, dict.fromkeys(self._streams, ">"), count=1, block=block_ms
            )
            woken = [
                # redis-py makes a map of the fields; a script's reply has them flat.
                lease_of(stream, entry, list(values.values()))
                for stream, entries in first
                for entry, values in entries
            ]
        except ResponseError as error:
            await self._mend(error)
            return Fetched([], 0)
        return Fetched(woken, 0)

    async def _take(self, worker: str, count: int, judging_s: float) -> Fetched:
        tail = _failed_tail(FailureCode.EXPIRED, TOO_LATE, queue_ms="@")
        dropped, *taken = await self._fetch(
            keys=self._streams,
            args=[
                GROUP,
                worker,
                count,
                judging_s,
                self._ttl_s,
                self._keys.verdicts,
                self._keys.item(""),
                self._keys.group(""),
                *tail.split("@"),
            ],
        )
        leases = [
            lease_of(stream, entry, values[1::2]) for stream, entries in taken for entry, values in entries
        ]
        return Fetched(leases, dropped)

    async def reclaim(self, worker: str, lease_ms: int, count: int) -> list[Lease]:
        """Take over up to `count` items whose worker has not kept them alive for `lease_ms`."""
        try:
            cursors, *taken = await self._reclaim(
                keys=self._streams, args=[GROUP, worker, lease_ms, count, *self._cursors]
            )
        except ResponseError as error:
            await self._mend(error)
            return []
        self._cursors = [cursor.decode() for cursor in cursors]
        return [lease_of(stream, entry, values[1::2], int(n)) for stream, entry, values, n in taken]

    async def _mend(self, error: ResponseError) -> None:
        """Make the groups anew where Redis came back without its data, or somebody removed them."""
        if "NOGROUP" not in str(error):
            raise error
        await self.create_groups()

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
            replies = await pipe.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, ResponseError):
                await self._mend(reply)
            elif isinstance(reply, RedisError):
                raise reply

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
        keys = [self._keys.dead, *self._streams]
        args: list[str | int] = [GROUP, self._ttl_s, self._keys.verdicts, DEAD_LETTERS_KEPT]
        args += [self._keys.group(""), self._cache_ttl_s]
        for done in completions:
            lease = done.lease
            keys.append(self._keys.item(lease.id))
            args += [lease.id, lease.entry, self._index.get(lease.stream, 1), lease.group, done.verdict]
            args += ["1" if done.dead else "", done.cache_key]
        return int(await self._complete(keys=keys, args=args))

    async def cached(self, keys: Sequence[str]) -> list[bytes | None]:
        """What the cache holds under each; an empty key holds nothing."""
        found: Any = await self._redis.mget(keys)
        return list(found)

    async def forget_cached(self, keys: Sequence[str]) -> None:
        if keys:
            await self._redis.unlink(*keys)

    async def close(self) -> None:
        await self._redis.aclose()


def _script(redis: Redis, name: str) -> AsyncScript:
    folder = resources.files("judge_service.queue").joinpath("lua")
    parts = [folder.joinpath(f"{part}.lua").read_text(encoding="utf-8") for part in ("store", name)]
    return redis.register_script("".join(parts))


def verdicts_in(message: bytes) -> list[tuple[str, bytes]]:
    """(id, verdict's JSON) of what became terminal. A message may be lost; the stored verdict is not."""
    lines = message.split(b"\n")
    return [(name.decode(), verdict) for name, verdict in zip(lines[::2], lines[1::2], strict=True)]


def _found(reply: bytes) -> Found:
    # The verdict is JSON, and begins with a brace.
    if reply == b"w":
        return Waiting()
    if reply == b"":
        return Unknown()
    return Gone(float(reply[1:])) if reply.startswith(b"g") else Terminal(reply)


@cache
def _failed_tail(code: FailureCode, message: str, *, queue_ms: str) -> str:
    """What stands in such a verdict's JSON after its id: a script puts id and `queue_ms` there."""
    failed = FailedVerdict(
        id="", error=VerdictError(code=code, message=message), timings=Timings(queue_ms=0.0, judge_ms=0.0)
    )
    tail = failed.model_dump_json().removeprefix('{"id":""')
    return tail.replace('"queue_ms":0.0', f'"queue_ms":{queue_ms}')
