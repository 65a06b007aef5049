from __future__ import annotations

import asyncio

import pytest

from judge_service.queue.coalesce import Coalescer


class Server:
    """Doubles numbers, a call at a time, each when the test lets it."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.let = asyncio.Semaphore(0)

    async def __call__(self, numbers: list[int]) -> list[int]:
        self.calls.append(numbers)
        await self.let.acquire()
        if 13 in numbers:
            raise ValueError("13")
        return [2 * number for number in numbers]


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_arrives_during_a_call_goes_together_in_the_next() -> None:
    async def main() -> None:
        server = Server()
        double = Coalescer(server, lambda number: 1, most=3)
        first = asyncio.create_task(double(1))
        await settled()
        later = [asyncio.create_task(double(number)) for number in range(2, 7)]
        await settled()
        assert server.calls == [[1]]
        for _ in range(3):
            server.let.release()
        assert await asyncio.gather(first, *later) == [2, 4, 6, 8, 10, 12]
        assert server.calls == [[1], [2, 3, 4], [5, 6]]

    asyncio.run(main())


def test_one_that_is_larger_than_the_most_goes_alone() -> None:
    async def main() -> None:
        server = Server()
        double = Coalescer(server, lambda number: number, most=10)
        for _ in range(9):
            server.let.release()
        assert await asyncio.gather(*(double(number) for number in (4, 50, 4, 6, 1))) == [8, 100, 8, 12, 2]
        assert server.calls == [[4], [50], [4, 6], [1]]

    asyncio.run(main())


def test_an_error_reaches_those_who_went_with_it_and_no_others() -> None:
    async def main() -> None:
        server = Server()
        double = Coalescer(server, lambda number: 1, most=2)
        for _ in range(9):
            server.let.release()
        answers = await asyncio.gather(*(double(n) for n in (13, 2, 3, 4)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [ValueError, ValueError, int, int]
        assert await double(5) == 10

    asyncio.run(main())


def test_one_who_leaves_takes_nobody_along() -> None:
    async def main() -> None:
        server = Server()
        double = Coalescer(server, lambda number: 1, most=8)
        first = asyncio.create_task(double(1))
        await settled()
        leaving, staying = asyncio.create_task(double(2)), asyncio.create_task(double(3))
        await settled()
        leaving.cancel()
        for _ in range(2):
            server.let.release()
        assert await first == 2
        assert await staying == 6
        with pytest.raises(asyncio.CancelledError):
            await leaving

    asyncio.run(main())
