"""Long polls: one subscription an API process wakes those who wait; the stored verdict is the truth."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from redis.exceptions import RedisError

from judge_service.queue import Found, JudgementQueue, Terminal
from shared.logs import fields

logger = logging.getLogger(__name__)

POLL_S = 1.0
"""Fallback: look so often even when no wake-up came, since a message may be lost."""


class Wakeups:
    """Tells who waits for which ids that one of them has become terminal."""

    def __init__(self, queue: JudgementQueue) -> None:
        self._queue = queue
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self.closing = False

    def close(self) -> None:
        """Wake everybody: the service is going, and each poll answers with what there is."""
        self.closing = True
        for events in self._waiting.values():
            for event in events:
                event.set()

    @contextmanager
    def watch(self, ids: Sequence[str]) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        for judgement_id in ids:
            self._waiting.setdefault(judgement_id, set()).add(event)
        try:
            yield event
        finally:
            for judgement_id in ids:
                events = self._waiting.get(judgement_id, set())
                events.discard(event)
                if not events:
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
                            self._wake(message["data"].decode().split("\n"))
            except RedisError as error:
                logger.warning("no wake-ups from Redis", extra=fields(error=type(error).__name__))
            await asyncio.sleep(pause_s)
            pause_s = min(1.0, pause_s * 2)

    def _wake(self, ids: Sequence[str]) -> None:
        for judgement_id in ids:
            for event in self._waiting.get(judgement_id, ()):
                event.set()


Enough = Callable[[Sequence[Found]], bool]


def all_done(found: Sequence[Found]) -> bool:
    return all(isinstance(one, Terminal) for one in found)


def any_done(found: Sequence[Found]) -> bool:
    return any(isinstance(one, Terminal) for one in found)


async def look_until(
    queue: JudgementQueue, wakeups: Wakeups, ids: Sequence[str], wait_s: float, enough: Enough
) -> list[Found]:
    """How each id stands once that is `enough`, or after `wait_s` seconds. Raises RedisError."""
    until = time.monotonic() + wait_s
    known: dict[str, Found] = {}
    # Watch before the first look, or a verdict between the two would wake nobody.
    with wakeups.watch(ids) as event:
        while True:
            event.clear()
            open_ids = [
                judgement_id for judgement_id in ids if not isinstance(known.get(judgement_id), Terminal)
            ]
            known.update(zip(open_ids, await queue.lookup(open_ids), strict=True))
            found = [known[judgement_id] for judgement_id in ids]
            left_s = until - time.monotonic()
            if enough(found) or left_s <= 0 or wakeups.closing:
                return found
            try:
                async with asyncio.timeout(min(left_s, POLL_S)):
                    await event.wait()
            except TimeoutError:
                continue
