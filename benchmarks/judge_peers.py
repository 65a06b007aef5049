"""The same no-op work through two queue libraries: taskiq-redis and streaq (`pip install tether[bench]`).

Both in their favour: the producer speaks to Redis directly and not over HTTP, hands over as fast as the
library lets it (streaq in pipelines of 64), and reads no result back.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import redis.asyncio
from streaq import Worker as StreaqWorker
from taskiq.api import run_receiver_task
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.judge_load import texts
from shared.processes import print_ready

CONCURRENCY = 64
RESULT_TTL_S = 3600
DEADLINE_S = 120


def on_database(url: str, number: int) -> str:
    """Each library has a database of its own on the one server, so that its keys can be counted."""
    return f"{url.rpartition('/')[0]}/{number}"


def taskiq_broker(url: str) -> tuple[Any, Any]:
    database = on_database(url, 1)
    results: Any = RedisAsyncResultBackend(database, result_ex_time=RESULT_TTL_S)
    broker: Any = RedisStreamBroker(database, consumer_id="0").with_result_backend(results)

    @broker.task(task_name="nothing")  # type: ignore[untyped-decorator]
    async def nothing(prompt: str, response: str) -> float:
        return 0.0

    return broker, nothing


def streaq_worker(url: str) -> tuple[Any, Any]:
    worker: Any = StreaqWorker(on_database(url, 2), concurrency=CONCURRENCY, handle_signals=False)

    @worker.task(ttl=RESULT_TTL_S, name="nothing", silent=True)  # type: ignore[untyped-decorator]
    async def nothing(prompt: str, response: str) -> float:
        return 0.0

    return worker, nothing


async def work_taskiq(url: str) -> None:
    broker, _ = taskiq_broker(url)
    await broker.startup()
    print_ready("taskiq")
    await run_receiver_task(broker, max_async_tasks=CONCURRENCY)


async def work_streaq(url: str) -> None:
    worker, _ = streaq_worker(url)
    print_ready("streaq")
    await worker.run_async()


async def taskiq_rate(url: str, items: int, seed: int) -> float:
    """Items a second, from the first that is handed over to the last result stored."""
    broker, nothing = taskiq_broker(url)
    await broker.startup()
    pairs = list(texts(items, seed))
    async with redis.asyncio.Redis.from_url(on_database(url, 1)) as db:
        before = await db.dbsize()
        began = time.perf_counter()
        for start in range(0, items, CONCURRENCY):
            await asyncio.gather(*(nothing.kiq(*pair) for pair in pairs[start : start + CONCURRENCY]))
        await _until(db.dbsize, before + items)
        took = time.perf_counter() - began
    await broker.shutdown()
    return items / took


async def streaq_rate(url: str, items: int, seed: int) -> float:
    """Items a second, from the first that is handed over to the last result stored."""
    worker, nothing = streaq_worker(url)
    pairs = list(texts(items, seed))
    async with worker, redis.asyncio.Redis.from_url(on_database(url, 2)) as db:

        async def stored() -> int:
            return int(await db.zcard("streaq:default:index:results"))

        before = await stored()
        began = time.perf_counter()
        for start in range(0, items, CONCURRENCY):
            tasks = [nothing.enqueue(*pair) for pair in pairs[start : start + CONCURRENCY]]
            await worker.enqueue_many(tasks)
        await _until(stored, before + items)
        return items / (time.perf_counter() - began)


async def _until(count: Any, wanted: int) -> None:
    until = time.monotonic() + DEADLINE_S
    while (have := await count()) < wanted:
        if time.monotonic() > until:
            raise TimeoutError(f"{have} of {wanted} after {DEADLINE_S} s")
        await asyncio.sleep(0.005)
