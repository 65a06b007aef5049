"""How items end without a judge, or with an earlier verdict: expired, lost, gone, cached."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from judge_service.backends.rules import RulesBackend
from judge_service.queue.cache import VerdictCache
from judge_service.queue.items import Admitted, Completion, Gone, Terminal, Unknown, Waiting, new_item
from judge_service.queue.streams import GROUP, JudgementQueue, connect
from judge_service.worker.controls import load_controls
from judge_service.worker.guard import Controls
from judge_service.worker.verdicts import judge_info
from judge_service.worker.worker import Worker, WorkerSettings
from shared.embedded_redis import RunningRedis
from shared.redis_keys import JudgeKeys
from shared.rubrics.rubric import load_rubric
from shared.wire import FailedVerdict, JudgementItem, Priority, ScoredVerdict, ScoreKind

pytestmark = pytest.mark.integration

Scenario = Callable[[JudgementQueue, Any], Awaitable[None]]
Play = Callable[..., None]


@pytest.fixture
def redis_server(any_redis: RunningRedis) -> RunningRedis:
    """Every test here is tried on each server there is."""
    return any_redis


@pytest.fixture
def play(redis_server: RunningRedis, redis_prefix: str) -> Play:
    def run(scenario: Scenario, *, result_ttl_s: int = 100) -> None:
        async def main() -> None:
            redis = connect(redis_server.url)
            queue = JudgementQueue(redis, JudgeKeys(redis_prefix), limit=3000, result_ttl_s=result_ttl_s)
            await queue.create_groups()
            try:
                async with asyncio.timeout(60):
                    await scenario(queue, redis)
            finally:
                await queue.close()

        asyncio.run(main())

    return run


async def submit(queue: JudgementQueue, *names: str, text: str = "", **fields: Any) -> None:
    batch = [new_item(name, JudgementItem(prompt="p", response=text or name), "demo-v1") for name in names]
    admitted = await queue.submit(batch, rubric="demo-v1", priority=Priority.TARGET, **fields)
    assert isinstance(admitted, Admitted)


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{n}" for n in range(count)]


async def verdict(queue: JudgementQueue, judgement_id: str) -> dict[str, Any]:
    [found] = await queue.lookup([judgement_id])
    assert isinstance(found, Terminal), found
    parsed: dict[str, Any] = json.loads(found.verdict)
    return parsed


def test_expired_items_end_on_the_way_to_live_ones(play: Play, redis_prefix: str) -> None:
    async def scenario(queue: JudgementQueue, redis: Any) -> None:
        now = time.time()
        await submit(queue, *names("old", 200), expires_at=now - 1, group="g")
        await submit(queue, "t/soon", expires_at=now + 100)
        await submit(queue, *names("live", 5))
        await submit(queue, *names("far", 5), expires_at=now + 10_000)

        taken = await queue.fetch("w", 8, 0, judging_s=1000)

        assert taken.dropped == 201
        assert [lease.id for lease in taken.leases] == [*names("live", 5), "far0", "far1", "far2"]
        assert taken.leases[5].expires_at == pytest.approx(now + 10_000, abs=1e-3)
        # It is a verdict as any other, under the id that the client knows.
        [found] = await queue.lookup(["t/soon"])
        assert isinstance(found, Terminal)
        ended = FailedVerdict.model_validate_json(found.verdict)
        assert (ended.id, ended.error.code) == ("soon", "expired")
        assert 0 <= ended.timings.queue_ms < 60_000
        assert await redis.exists(JudgeKeys(redis_prefix).group("g")) == 0
        pending = await redis.xpending(JudgeKeys(redis_prefix).stream(Priority.TARGET), GROUP)
        assert pending["pending"] == 8
        assert sum((await queue.depth()).values()) == 10

    play(scenario)


def test_a_flood_of_expired_items_is_ended_in_parts(play: Play) -> None:
    async def scenario(queue: JudgementQueue, _: Any) -> None:
        await submit(queue, *names("old", 2500), expires_at=1.0)
        await submit(queue, "live")
        dropped, leases = [], []
        while not leases:
            taken = await queue.fetch("w", 64, 0)
            dropped.append(taken.dropped)
            leases = taken.leases
        assert sum(dropped) == 2500
        assert max(dropped) < 1100
        assert [lease.id for lease in leases] == ["live"]

    play(scenario)


def test_an_entry_deleted_by_hand_is_a_failure_and_not_a_wait_for_ever(play: Play, redis_prefix: str) -> None:
    async def scenario(queue: JudgementQueue, redis: Any) -> None:
        await submit(queue, "held", "queued", "well", group="g")
        stream = JudgeKeys(redis_prefix).stream(Priority.TARGET)
        entries = {fields[b"id"]: entry for entry, fields in await redis.xrange(stream)}
        await redis.xreadgroup(GROUP, "w", {stream: ">"}, count=1)
        await redis.xdel(stream, entries[b"held"], entries[b"queued"])

        for judgement_id in ("held", "queued"):
            lost = await verdict(queue, judgement_id)
            assert lost["error"]["code"] == "server_error"
            assert "deleted by hand" in lost["error"]["message"]
        assert await queue.lookup(["well"]) == [Waiting()]
        # Nor does its delivery stay pending.
        assert await queue.reclaim("w2", 0, 8) == []
        assert (await redis.xpending(stream, GROUP))["pending"] == 0
        [lease] = (await queue.fetch("w2", 8, 0)).leases
        assert lease.id == "well"

    play(scenario)


def test_a_verdict_whose_time_is_up_is_gone_and_may_be_asked_again(play: Play) -> None:
    async def scenario(queue: JudgementQueue, _: Any) -> None:
        await submit(queue, "a")
        [lease] = (await queue.fetch("w", 8, 0)).leases
        await queue.complete([Completion(lease, '{"n":1}')])
        assert await queue.lookup(["a"]) == [Terminal(b'{"n":1}')]
        [found] = await queue.lookup(["a"])
        while not isinstance(found, Gone):
            await asyncio.sleep(0.02)
            [found] = await queue.lookup(["a"])
        assert time.time() - 30 < found.until <= time.time() + 1
        assert await queue.lookup(["b"]) == [Unknown()]
        await submit(queue, "a", text="another text is another judgement now")
        [lease] = (await queue.fetch("w", 8, 0)).leases
        await queue.complete([Completion(lease, '{"n":2}')])
        assert await queue.lookup(["a"]) == [Terminal(b'{"n":2}')]

    play(scenario, result_ttl_s=1)


def test_heartbeats_go_on_after_redis_lost_its_data(play: Play, redis_prefix: str) -> None:
    async def scenario(queue: JudgementQueue, redis: Any) -> None:
        await submit(queue, "a")
        leases = (await queue.fetch("w", 8, 0)).leases
        for key in [key async for key in redis.scan_iter(match=f"{redis_prefix}*")]:
            await redis.delete(key)
        await queue.keep_alive("w", leases, "{}", 10)
        assert await queue.reclaim("w", 0, 8) == []
        assert await queue.complete([Completion(leases[0], "{}")]) == 0
        await submit(queue, "b")
        assert [lease.id for lease in (await queue.fetch("w", 8, 0)).leases] == ["b"]

    play(scenario)


def test_submissions_at_once_are_each_admitted_whole_or_not_at_all(play: Play) -> None:
    async def scenario(queue: JudgementQueue, _: Any) -> None:
        async def send(*ids: str, text: str = "x", priority: Priority = Priority.TARGET) -> object:
            batch = [new_item(key, JudgementItem(prompt="p", response=text), "demo-v1") for key in ids]
            return type(await queue.submit(batch, rubric="demo-v1", priority=priority)).__name__

        outcomes = await asyncio.gather(
            send("a", "b"),
            send("c", priority=Priority.POLICY),
            send("d", "a", text="another"),
            send("a", "e"),
            send(*names("many", 2999)),
            send("f"),
        )
        assert outcomes == ["Admitted", "Admitted", "Conflict", "Admitted", "QueueFull", "Admitted"]
        assert await queue.lookup(["d", "many0"]) == [Unknown(), Unknown()]
        assert await queue.depth() == {"policy": 1, "target": 4, "evaluation": 0}

    play(scenario)


CONTROLS = Controls(
    {"demo-v1": load_controls("demo-v1", ScoreKind.RULES)}, every_s=300, deadline_s=60, trusting=True
)
"""The backends here are no judges."""

SETTINGS = WorkerSettings(
    batch_size=8, linger_ms=0, concurrency=1, lease_s=5, max_deliveries=3, redis_deadline_s=5
)


class Counting(RulesBackend):
    def __init__(self) -> None:
        self.asked = 0

    async def judge(self, batch: Any) -> Any:
        self.asked += len(batch)
        return await super().judge(batch)


async def judged(queue: JudgementQueue, backend: Any, *ids: str) -> list[ScoredVerdict]:
    worker = Worker(queue, backend, {"demo-v1": load_rubric("demo-v1")}, SETTINGS, CONTROLS)
    running = asyncio.create_task(worker.run())
    try:
        while not all(isinstance(found, Terminal) for found in await queue.lookup(ids)):
            await asyncio.wait([running], timeout=0.02)
    finally:
        worker.drain()
        await running
    found = await queue.lookup(ids)
    return [ScoredVerdict.model_validate_json(one.verdict) for one in found if isinstance(one, Terminal)]


def test_a_text_that_was_judged_is_not_judged_again(play: Play) -> None:
    async def scenario(queue: JudgementQueue, _: Any) -> None:
        backend = Counting()
        await submit(queue, "acme/a", text="same")
        [first] = await judged(queue, backend, "acme/a")
        await submit(queue, "acme/b", text="same")
        await submit(queue, "acme/c", text="other")
        await submit(queue, "else/a", text="same")
        await submit(queue, "acme/d", text="same", rationale=True)
        again, other, elses, asked_why = await judged(queue, backend, "acme/b", "acme/c", "else/a", "acme/d")

        assert backend.asked == 4
        assert (again.id, again.cached, again.score) == ("b", True, first.score)
        assert again.judge == first.judge
        assert [one.cached for one in (first, other, elses, asked_why)] == [False] * 4

    play(scenario)


def test_what_was_judged_by_a_judge_in_doubt_is_forgotten(play: Play) -> None:
    async def scenario(queue: JudgementQueue, _: Any) -> None:
        backend = Counting()
        rubric = load_rubric("demo-v1")
        cache = VerdictCache(queue, {"demo-v1": judge_info(backend.info, rubric)}, on=True)
        await submit(queue, "a", text="same")
        [lease] = (await queue.fetch("w", 8, 0)).leases
        [graded] = await judged_by(backend, queue, lease)
        assert (await cache.completions([lease]))[0] is not None
        await cache.forget([lease])
        assert await cache.completions([lease]) == [None]
        assert graded

    async def judged_by(backend: Any, queue: JudgementQueue, lease: Any) -> list[bool]:
        worker = Worker(queue, backend, {"demo-v1": load_rubric("demo-v1")}, SETTINGS, CONTROLS)
        await worker._judging.handle([lease], worker._guard)
        return [isinstance((await queue.lookup([lease.id]))[0], Terminal)]

    play(scenario)
