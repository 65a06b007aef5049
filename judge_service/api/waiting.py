"""Long polls: one subscription an API process tells those who wait; the stored verdict is the truth."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from redis.exceptions import RedisError

from judge_service.queue.items import Found, Terminal, Waiting
from judge_service.queue.streams import JudgementQueue, verdicts_in
from shared.logs import fields

logger = logging.getLogger(__name__)

POLL_S = 1.0
"""Fallback: look so often even when no news came, since a message may be lost."""


class Watch(asyncio.Event):
    """Set when there is news of the ids that it watches. Clear it before you look."""

    def __init__(self) -> None:
        super().__init__()
        self.verdicts: dict[str, bytes] = {}
        """Those that came since it was begun, by id."""


class Wakeups:
    """Tells who waits for which ids of their verdicts."""

    def __init__(self, queue: JudgementQueue) -> None:
        self._queue = queue
        self._waiting: dict[str, set[Watch]] = {}
        self.closing = False

    def close(self) -> None:
        """Wake everybody: the service is going, and each poll answers with what there is."""
        self.closing = True
        for watches in self._waiting.values():
            for watch in watches:
                watch.set()

    @contextmanager
    def watch(self, ids: Sequence[str]) -> Iterator[Watch]:
        watch = Watch()
        for judgement_id in ids:
            self._waiting.setdefault(judgement_id, set()).add(watch)
        try:
            yield watch
        finally:
            for judgement_id in ids:
                watches = self._waiting.get(judgement_id, set())
                watches.discard(watch)
                if not watches:
                    self._waiting.pop(judgement_id, None)

    async def run(self) -> None:
        """Listen until cancelled, through every outage of Redis."""
        pause_s = 0.05
        while True:
            try:
                async with self._queue.verdict_news() as news:
                    pause_s = 0.05
                    while True:
                        message = await news.get_message(timeout=5.0)
                        if message is not None and message["type"] == "message":
                            self._tell(verdicts_in(message["data"]))
            except RedisError as error:
                logger.warning("no wake-ups from Redis", extra=fields(error=type(error).__name__))
            await asyncio.sleep(pause_s)
            pause_s = min(1.0, pause_s * 2)

    def _tell(self, news: Sequence[tuple[str, bytes]]) -> None:
        for judgement_id, verdict in news:
            for watch in self._waiting.get(judgement_id, ()):
                watch.verdicts[judgement_id] = verdict
                watch.set()


Enough = Callable[[Sequence[Found]], bool]


def all_done(found: Sequence[Found]) -> bool:
    return all(isinstance(one, Terminal) for one in found)


def any_done(found: Sequence[Found]) -> bool:
    return any(isinstance(one, Terminal) for one in found)


async def look_until(
    queue: JudgementQueue, wakeups: Wakeups, ids: Sequence[str], wait_s: float, enough: Enough
) -> list[Found]:
    """How each id stands once that is `enough`, or after `wait_s` seconds. Raises RedisError."""
    # Watch before the first look, or a verdict between the two would be no news.
    with wakeups.watch(ids) as watch:
        known = dict(zip(ids, await queue.lookup(ids), strict=True))
        await wait_until(queue, wakeups, watch, known, wait_s, enough)
    return [known[judgement_id] for judgement_id in ids]


async def wait_until(
    queue: JudgementQueue,
    wakeups: Wakeups,
    watch: Watch,
    known: dict[str, Found],
    wait_s: float,
    enough: Enough,
) -> None:
    """Keep `known` up to date until it is `enough`, or for `wait_s` seconds. Raises RedisError.

    `known`: how each id stood when, or after, the watch began.
    """
    until = time.monotonic() + wait_s
    next_look = time.monotonic() + POLL_S
    while True:
        watch.clear()
        for judgement_id, verdict in watch.verdicts.items():
            known[judgement_id] = Terminal(verdict)
        now = time.monotonic()
        if enough(list(known.values())) or now >= until or wakeups.closing:
            return
        if now >= next_look:
            open_ids = [key for key, one in known.items() if isinstance(one, Waiting)]
            known.update(zip(open_ids, await queue.lookup(open_ids), strict=True))
            next_look = time.monotonic() + POLL_S
            continue
        try:
            async with asyncio.timeout(min(until, next_look) - now):
                await watch.wait()
        except TimeoutError:
            continue
