from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from judge_service.api.problem import field_path
from judge_service.api.waiting import POLL_S, Wakeups, all_done, any_done, look_until
from judge_service.config import QueueConfig, checked
from judge_service.queue.streams import Found, Terminal, Waiting
from shared.errors import ConfigError


@pytest.mark.parametrize(
    ("location", "path"),
    [(("items", 3, "id"), "items[3].id"), ((), "body"), (("query", "group"), "query.group"), ((0,), "[0]")],
)
def test_a_field_is_named_as_its_reader_writes_it(location: tuple[str | int, ...], path: str) -> None:
    assert field_path(location) == path


def test_a_wrong_redis_url_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        checked(QueueConfig, {"redis_url": "http://:hidden@db"})
    assert "redis_url" in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert "hidden" not in repr(QueueConfig(redis_url="redis://:hidden@db"))


class Desk:
    """Stands for the queue: verdicts come when the test says so."""

    def __init__(self) -> None:
        self.done: set[str] = set()
        self.looked = asyncio.Semaphore(0)
        """Free once for every look."""

    async def lookup(self, ids: Sequence[str]) -> list[Found]:
        self.looked.release()
        return [Terminal(key.encode()) if key in self.done else Waiting() for key in ids]


def scenario(play: Any) -> None:
    async def main() -> None:
        desk = Desk()
        async with asyncio.timeout(30):
            await play(desk, Wakeups(desk))  # type: ignore[arg-type]

    asyncio.run(main())


def test_news_end_the_wait_at_once_and_need_no_second_look() -> None:
    async def play(desk: Desk, wakeups: Wakeups) -> None:
        waiting = asyncio.create_task(look_until(desk, wakeups, ["a", "b"], 20, any_done))  # type: ignore[arg-type]
        await desk.looked.acquire()
        began = time.monotonic()
        wakeups._tell([("b", b"b"), ("c", b"c")])
        assert await waiting == [Waiting(), Terminal(b"b")]
        assert time.monotonic() - began < POLL_S / 2
        assert wakeups._waiting == {}
        assert desk.looked.locked()

    scenario(play)


def test_lost_news_cost_a_poll_and_not_the_verdict() -> None:
    async def play(desk: Desk, wakeups: Wakeups) -> None:
        waiting = asyncio.create_task(look_until(desk, wakeups, ["a"], 20, all_done))  # type: ignore[arg-type]
        await desk.looked.acquire()
        desk.done.add("a")
        assert await waiting == [Terminal(b"a")]
        assert not desk.looked.locked()

    scenario(play)


def test_all_waits_for_the_last() -> None:
    async def play(desk: Desk, wakeups: Wakeups) -> None:
        waiting = asyncio.create_task(look_until(desk, wakeups, ["a", "b"], 20, all_done))  # type: ignore[arg-type]
        await desk.looked.acquire()
        for key in ("a", "b"):
            assert not waiting.done()
            wakeups._tell([(key, key.encode())])
        assert await waiting == [Terminal(b"a"), Terminal(b"b")]

    scenario(play)


def test_a_service_that_closes_answers_with_what_there_is() -> None:
    async def play(desk: Desk, wakeups: Wakeups) -> None:
        waiting = asyncio.create_task(look_until(desk, wakeups, ["a"], 20, all_done))  # type: ignore[arg-type]
        await desk.looked.acquire()
        wakeups.close()
        assert await waiting == [Waiting()]

    scenario(play)
