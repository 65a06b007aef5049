from __future__ import annotations

import asyncio

from judge_service.ending import end


def test_a_task_that_loses_a_cancellation_ends_all_the_same() -> None:
    lost = 0

    async def careless() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                lost += 1
                if lost == 3:
                    raise

    async def main() -> None:
        task = asyncio.create_task(careless())
        await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await end(task)
        assert task.cancelled()

    asyncio.run(main())
    assert lost == 3


def test_a_task_that_failed_keeps_its_error() -> None:
    async def main() -> None:
        async def fails() -> None:
            raise ValueError("why")

        task = asyncio.create_task(fails())
        await asyncio.sleep(0)
        await end(task)
        assert isinstance(task.exception(), ValueError)

    asyncio.run(main())
