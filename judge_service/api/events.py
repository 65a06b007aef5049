"""Verdicts as server-sent events: one event a judgement, as it comes, until all have one.

The id of an event says which judgements of the stream have been delivered (a bit each), so a client that
reconnects with `Last-Event-ID`, as every EventSource does by itself, gets the rest and nothing twice,
from any API process. A stream of a group covers what the group had unfinished when it was opened; its
list of ids is kept in Redis for the reconnects.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from redis.exceptions import RedisError

from judge_service.api.context import Caller, Context
from judge_service.api.problem import ApiProblem, invalid
from judge_service.queue.streams import Found, Terminal, Waiting
from judge_service.tenants.names import public
from shared.logs import fields
from shared.wire import ID_PATTERN

logger = logging.getLogger(__name__)

MAX_STREAM_ITEMS = 4096
"""Most judgements of one stream."""

LOOK_S = 2.0
"""Fallback: look so often at what is still out, since news may be lost."""

KEEP_WATCH_S = 3600

RETRY_MS = 1000
"""What a client is told to wait before it reconnects."""


class WatchJudgements(BaseModel):
    """Which judgements to stream: some ids, or what a group has unfinished."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ids: list[str] | None = Field(default=None, min_length=1, max_length=MAX_STREAM_ITEMS)
    group: str | None = Field(default=None, pattern=ID_PATTERN)

    @model_validator(mode="after")
    def _one_of_both(self) -> WatchJudgements:
        if (self.ids is None) == (self.group is None):
            raise ValueError("give either `ids` or `group`")
        return self


def checked(ids: Sequence[str], group: str | None) -> WatchJudgements:
    """Raises ApiProblem 422."""
    try:
        return WatchJudgements(ids=list(ids) or None, group=group)
    except ValidationError as error:
        raise invalid(error) from None


@dataclass(frozen=True)
class Watch:
    """What a stream covers."""

    ids: tuple[str, ...]
    """Scoped, in the order of the bits."""
    token: str
    """Names the list in Redis; empty where the request itself holds the ids."""
    delivered: frozenset[int]
    """Positions that the client has had."""


def event_id(token: str, delivered: frozenset[int] | set[int], total: int) -> str:
    """`token.bits`: bit i of the bytes is set where position i was delivered."""
    bits = bytearray((total + 7) // 8)
    for position in delivered:
        bits[position // 8] |= 1 << (position % 8)
    return f"{token}.{base64.urlsafe_b64encode(bytes(bits)).decode().rstrip('=')}"


def delivered_of(bits: str, total: int) -> frozenset[int]:
    """The reverse. Raises ApiProblem 400 where it is no id of this stream."""
    try:
        raw = base64.b64decode(bits + "=" * (-len(bits) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != (total + 7) // 8:
        raise ApiProblem(400, "Last-Event-ID is not of a stream of these judgements; leave it out")
    return frozenset(at for at in range(total) if raw[at // 8] >> (at % 8) & 1)


async def watch_ids(caller: Caller, ids: Sequence[str], last_event_id: str | None) -> Watch:
    """Raises ApiProblem 400 for a Last-Event-ID of another stream."""
    scoped = tuple(caller.scoped_all(list(dict.fromkeys(ids))))
    delivered: frozenset[int] = frozenset()
    if last_event_id:
        delivered = delivered_of(last_event_id.rpartition(".")[2], len(scoped))
    return Watch(scoped, "", delivered)


async def watch_group(context: Context, caller: Caller, group: str, last_event_id: str | None) -> Watch:
    """Raises ApiProblem 400 for a Last-Event-ID that is not, or no more, of this group's stream; 422 where
    the group is too large."""
    queue = context.queue
    token = (last_event_id or "").partition(".")[0]
    if token:
        stored = await queue.redis.get(queue.keys.watch(caller.scoped(token)))
        if stored is None or json.loads(stored)["group"] != group:
            raise ApiProblem(400, "Last-Event-ID is not of a stream of this group, or too old; leave it out")
        ids = tuple(json.loads(stored)["ids"])
        return Watch(ids, token, delivered_of((last_event_id or "").partition(".")[2], len(ids)))
    leases = await queue.unfinished(caller.scoped(group), MAX_STREAM_ITEMS + 1)
    if len(leases) > MAX_STREAM_ITEMS:
        raise ApiProblem(
            422,
            f"group {group!r} has more than {MAX_STREAM_ITEMS} unfinished judgements; stream them by ids",
            errors=[("group", "too many judgements for one stream")],
        )
    ids = tuple(lease.id for lease in leases)
    token = uuid4().hex
    note = json.dumps({"group": group, "ids": ids})
    await queue.redis.set(queue.keys.watch(caller.scoped(token)), note, ex=KEEP_WATCH_S)
    return Watch(ids, token, frozenset())


async def stream(
    context: Context, watch: Watch, found: Sequence[Found], keep_alive_s: float
) -> AsyncIterator[bytes]:
    """Frames of the stream.

    Args:
        found: how each stands at the start; none is unknown.
        keep_alive_s: seconds of silence after which a comment is sent, so that no proxy hangs up.
    """
    context.metrics.streams.inc()
    try:
        async for frame in _frames(context, watch, found, keep_alive_s):
            yield frame
    finally:
        context.metrics.streams.dec()


async def _frames(
    context: Context, watch: Watch, found: Sequence[Found], keep_alive_s: float
) -> AsyncIterator[bytes]:
    """Ends early where the process stops or Redis is away: the client comes back, perhaps to another."""
    total = len(watch.ids)
    delivered = set(watch.delivered)
    place = {judgement_id: at for at, judgement_id in enumerate(watch.ids) if at not in delivered}
    fresh = {watch.ids[at]: one for at, one in enumerate(found)}
    yield b": open\n\n"
    spoke = time.monotonic()
    with context.wakeups.watch(watch.ids) as news:
        # What came before we watched is no news: the first look is at once.
        next_look = time.monotonic()
        while True:
            news.clear()
            fresh |= {judgement_id: Terminal(verdict) for judgement_id, verdict in news.verdicts.items()}
            news.verdicts.clear()
            for judgement_id, one in fresh.items():
                if isinstance(one, Waiting) or judgement_id not in place:
                    continue
                delivered.add(place.pop(judgement_id))
                yield _frame(judgement_id, one, event_id(watch.token, delivered, total))
                spoke = time.monotonic()
            fresh = {}
            if not place:
                yield _done(event_id(watch.token, delivered, total), total)
                return
            if context.wakeups.closing:
                return
            now = time.monotonic()
            if now - spoke >= keep_alive_s:
                yield b": keep-alive\n\n"
                spoke = now
            if now >= next_look:
                try:
                    fresh = dict(zip(place, await context.queue.lookup(list(place)), strict=True))
                except RedisError as error:
                    logger.warning("an event stream ends early", extra=fields(error=type(error).__name__))
                    return
                next_look = time.monotonic() + LOOK_S
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(min(next_look, spoke + keep_alive_s) - now):
                    await news.wait()


def _done(this_id: str, total: int) -> bytes:
    return b'event: done\nretry: %d\nid: %s\ndata: {"items":%d}\n\n' % (RETRY_MS, this_id.encode(), total)


def _frame(judgement_id: str, found: Found, this_id: str) -> bytes:
    # `retry` stands beside data, since some clients take a block without any for an event.
    # Verdicts are one line of JSON. (Helpers that split data into lines also split at U+2028, which JSON
    # may hold.)
    if isinstance(found, Terminal):
        return b"event: verdict\nretry: %d\nid: %s\ndata: %s\n\n" % (
            RETRY_MS,
            this_id.encode(),
            found.verdict,
        )
    gone = json.dumps({"id": public(judgement_id)}).encode()
    return b"event: gone\nid: %s\ndata: %s\n\n" % (this_id.encode(), gone)
