"""What becomes of the judge under twice the load that it can carry: `python -m benchmarks.judge_overload`.

One worker whose judge sleeps 50 ms a batch. Its capacity is what it scores a second from a queue that is
never empty and never expires. Then submissions come at twice that rate, whatever becomes of them, each
with an `expires_at` a second ahead. Goodput is what is scored *and announced* before its own `expires_at`.
Capacity and overload take turns; the value is the median of the rounds.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.judge import PATH, SLEEPING, SLEEPING_RATE, Judge
from benchmarks.judge_load import Connection, bodies, closed_loop
from benchmarks.report import Row, write
from judge_service.queue.streams import JudgementQueue, connect, verdicts_in
from shared.embedded_redis import running_redis
from shared.redis_keys import JudgeKeys

SIZE = 8
ROUNDS = 5
SECONDS = 6.0
SETTLE_S = 2.0
"""At the start of each phase, not counted: the queue fills."""
EXPIRY_S = 1.0
CONNECTIONS = 8


@dataclass(frozen=True)
class Came:
    at: float
    """Unix seconds at which the verdict was announced."""
    scored: bool
    queue_ms: float


@dataclass(frozen=True)
class Overloaded:
    goodput: float
    """Items a second."""
    late: float
    """Share of what was scored that came after its expires_at."""
    ages_ms: list[float]
    """Of what was judged, when its judging began."""
    unfinished: int
    """Submitted, and without a verdict some time after its end."""


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch, running_redis(Path(scratch) / "redis") as server:
        judge = Judge(server.url, Path(scratch))
        try:
            with judge.workers(1, *SLEEPING):
                rows = asyncio.run(_measure(judge.url, server.url))
        finally:
            judge.api.stop()
    return write("judge_overload", rows)


async def _measure(url: str, redis_url: str) -> list[Row]:
    capacities, goodputs, late, ages = list[float](), list[float](), list[float](), list[float]()
    unfinished = 0
    async with _listening(redis_url) as came:
        for number in range(ROUNDS):
            capacities.append(await _capacity(url, number, came))
            overloaded = await _overload(url, 2 * capacities[-1], 1000 + number, came)
            goodputs.append(overloaded.goodput)
            late.append(overloaded.late)
            ages += overloaded.ages_ms
            unfinished += overloaded.unfinished
    ratios = [good / most for good, most in zip(goodputs, capacities, strict=True)]
    ages.sort()
    return [
        Row("capacity", statistics.median(capacities), "items/s"),
        Row("goodput at twice that", statistics.median(goodputs), "items/s"),
        Row("goodput / capacity", statistics.median(ratios), "", 0.9, "higher"),
        Row("  spread of that ratio", max(ratios) - min(ratios), ""),
        Row("scored, but too late", statistics.median(late), "of what is scored"),
        Row("age of what is judged: p50", ages[len(ages) // 2], "ms"),
        Row("age of what is judged: greatest", ages[-1], "ms", EXPIRY_S * 1000),
        Row("items without a verdict afterwards", unfinished, "", 0),
    ]


@asynccontextmanager
async def _listening(redis_url: str) -> AsyncIterator[dict[str, Came]]:
    """Fills with what becomes terminal, as long as it is open."""
    queue = JudgementQueue(connect(redis_url), JudgeKeys())
    came: dict[str, Came] = {}

    async def listen() -> None:
        async with queue.verdict_news() as news:
            while True:
                message = await news.get_message(timeout=5.0)
                now = time.time()
                for judgement_id, raw in verdicts_in(message["data"]) if message else ():
                    verdict = json.loads(raw)
                    scored = verdict["status"] == "scored"
                    came[judgement_id] = Came(now, scored, verdict["timings"]["queue_ms"])

    listener = asyncio.create_task(listen())
    try:
        yield came
    finally:
        listener.cancel()
        with suppress(asyncio.CancelledError):
            await listener
        await queue.close()


async def _capacity(url: str, seed: int, came: dict[str, Came]) -> float:
    load = bodies(int(SLEEPING_RATE * SECONDS / SIZE), SIZE, seed, wait_s=25)
    before = set(came)
    began = time.time()
    await closed_loop(url, PATH, load, CONNECTIONS, expect=(200,))
    ended = time.time()
    counted = [one for key, one in came.items() if key not in before and one.at > began + SETTLE_S]
    return len(counted) / (ended - began - SETTLE_S)


async def _overload(url: str, rate: float, seed: int, came: dict[str, Came]) -> Overloaded:
    load = [json.loads(body) for body in bodies(int(rate * SECONDS / SIZE), SIZE, seed)]
    expires: dict[str, float] = {}
    began = time.time()
    todo = iter(enumerate(load))

    async def sender() -> None:
        connection = Connection(url)
        for number, body in todo:
            await asyncio.sleep(max(0.0, began + number * SIZE / rate - time.time()))
            body["expires_at"] = time.time() + EXPIRY_S
            expires.update({item["id"]: body["expires_at"] for item in body["items"]})
            await connection.post(PATH, json.dumps(body).encode())
        await connection.close()

    await asyncio.gather(*(sender() for _ in range(CONNECTIONS)))
    ended = time.time()
    for _ in range(100):
        if expires.keys() <= came.keys():
            break
        await asyncio.sleep(0.1)
    mine = {key: came[key] for key in expires if key in came}
    counted = {key: one for key, one in mine.items() if began + SETTLE_S < one.at <= ended}
    scored = [key for key, one in counted.items() if one.scored]
    good = [key for key in scored if counted[key].at <= expires[key]]
    return Overloaded(
        late=1 - len(good) / max(1, len(scored)),
        goodput=len(good) / (ended - began - SETTLE_S),
        ages_ms=[one.queue_ms for one in mine.values() if one.scored],
        unfinished=len(expires) - len(mine),
    )


if __name__ == "__main__":
    sys.exit(main())
