"""The queue's scripts on a real server, call by call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from judge_service.backends.base import BackendInfo, Grade, GradeFailure, GradeRequest
from judge_service.backends.rules import RulesBackend
from judge_service.queue.streams import (
    GROUP,
    Admitted,
    Completion,
    Conflict,
    Fetched,
    JudgementQueue,
    Lease,
    NewItem,
    QueueFull,
    Terminal,
    Unknown,
    Waiting,
    connect,
    new_item,
    verdicts_in,
)
from judge_service.worker.controls import load_controls
from judge_service.worker.guard import Controls
from judge_service.worker.worker import Worker, WorkerSettings
from shared.embedded_redis import RunningRedis
from shared.redis_keys import JudgeKeys
from shared.rubrics.rubric import load_rubric
from shared.wire import JudgementItem, Priority, ScoreKind

pytestmark = pytest.mark.integration

Scenario = Callable[[JudgementQueue, Any], Awaitable[None]]
Play = Callable[[Scenario], None]


@pytest.fixture
def redis_server(any_redis: RunningRedis) -> RunningRedis:
    """Every test here is tried on each server there is."""
    return any_redis


@pytest.fixture
def play(redis_server: RunningRedis, redis_prefix: str) -> Play:
    """Run a scenario with a queue (limit 10, verdicts kept 100 s) and the plain client beside it."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[tuple[JudgementQueue, Any]]:
        redis = connect(redis_server.url)
        queue = JudgementQueue(redis, JudgeKeys(redis_prefix), limit=10, result_ttl_s=100)
        await queue.create_groups()
        try:
            yield queue, redis
        finally:
            await queue.close()

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            async with opened() as (queue, redis), asyncio.timeout(60):
                await scenario(queue, redis)

        asyncio.run(main())

    return run


def items(*names: str, text: str = "text") -> list[NewItem]:
    return [new_item(name, JudgementItem(prompt=text, response=name), "demo-v1") for name in names]


async def submit(queue: JudgementQueue, *names: str, priority: Priority = Priority.TARGET) -> None:
    assert isinstance(await queue.submit(items(*names), rubric="demo-v1", priority=priority), Admitted)


def ids(taken: list[Lease] | Fetched) -> list[str]:
    return [lease.id for lease in (taken.leases if isinstance(taken, Fetched) else taken)]


async def fetch(queue: JudgementQueue, worker: str) -> list[Lease]:
    return (await queue.fetch(worker, 10, 0)).leases


def test_admission_is_all_or_none(play: Play) -> None:
    async def scenario(queue: JudgementQueue, _: Any) -> None:
        async def send(*names: str, text: str = "text") -> object:
            return await queue.submit(items(*names, text=text), rubric="demo-v1", priority=Priority.POLICY)

        assert await send("a", "b") == Admitted((None, None))
        assert await send("c", "b", "a", text="another") == Conflict(("b", "a"))
        assert await send(*(f"x{n}" for n in range(9))) == QueueFull(depth=2, limit=10)
        assert await queue.lookup(["a", "c", "x0"]) == [Waiting(), Unknown(), Unknown()]
        assert await send("a", *(f"x{n}" for n in range(8))) == Admitted((None,) * 9)
        assert sum((await queue.depth()).values()) == 10

    play(scenario)


def test_another_rubric_is_another_judgement(play: Play) -> None:
    async def scenario(queue: JudgementQueue, _: Any) -> None:
        await submit(queue, "a")
        other = [new_item("a", JudgementItem(prompt="text", response="a"), "other")]
        assert await queue.submit(other, rubric="other", priority=Priority.TARGET) == Conflict(("a",))

    play(scenario)


def test_policy_readings_come_first(play: Play) -> None:
    async def scenario(queue: JudgementQueue, _: Any) -> None:
        await submit(queue, "e1", "e2", priority=Priority.EVALUATION)
        await submit(queue, "t1", "t2", priority=Priority.TARGET)
        await submit(queue, "p1", "p2", priority=Priority.POLICY)
        assert ids(await queue.fetch("w", 3, 0)) == ["p1", "p2", "t1"]
        assert ids(await queue.fetch("w", 9, 0)) == ["t2", "e1", "e2"]
        assert await fetch(queue, "w") == []

    play(scenario)


def test_an_idle_fetch_wakes_for_new_work(play: Play) -> None:
    async def scenario(queue: JudgementQueue, _: Any) -> None:
        waiting = asyncio.create_task(queue.fetch("w", 8, 5000))
        await asyncio.wait([waiting], timeout=0.05)
        assert not waiting.done()
        await submit(queue, "a", priority=Priority.EVALUATION)
        assert ids(await waiting) == ["a"]

    play(scenario)


def test_what_was_queued_before_the_group_is_seen(play: Play, redis_prefix: str) -> None:
    async def scenario(queue: JudgementQueue, redis: Any) -> None:
        await submit(queue, "a")
        await redis.xgroup_destroy(JudgeKeys(redis_prefix).stream(Priority.TARGET), GROUP)
        # The first call finds the group missing and makes it again.
        assert await fetch(queue, "w") == []
        assert ids(await queue.fetch("w", 8, 0)) == ["a"]

    play(scenario)


def test_the_first_verdict_stays(play: Play, redis_prefix: str) -> None:
    async def scenario(queue: JudgementQueue, redis: Any) -> None:
        await submit(queue, "a")
        [lease] = await fetch(queue, "w1")
        [again] = await queue.reclaim("w2", 0, 8)
        assert await queue.complete([Completion(again, '{"n": 1}')]) == 1
        assert await queue.complete([Completion(lease, '{"n": 2}')]) == 0
        assert await queue.lookup(["a"]) == [Terminal(b'{"n": 1}')]
        keys = JudgeKeys(redis_prefix)
        # As long again it is known that there was one.
        assert 100 < await redis.ttl(keys.item("a")) <= 200
        assert (await redis.xpending(keys.stream(Priority.TARGET), GROUP))["pending"] == 0
        assert sum((await queue.depth()).values()) == 0
        # Sent again, it is answered and not judged again.
        resent = await queue.submit(items("a"), rubric="demo-v1", priority=Priority.TARGET)
        assert resent == Admitted((b'{"n": 1}',))
        assert await fetch(queue, "w1") == []

    play(scenario)


def test_a_verdict_is_announced_once(play: Play) -> None:
    async def scenario(queue: JudgementQueue, _: Any) -> None:
        await submit(queue, "a", "b")
        leases = await fetch(queue, "w")
        async with queue.verdict_news() as news:
            await news.get_message(timeout=5)  # the subscription itself
            for _ in range(2):
                await queue.complete([Completion(lease, "{}") for lease in leases])
            heard = [message["data"] for _ in range(5) if (message := await news.get_message(timeout=0.2))]
        assert [verdicts_in(message) for message in heard] == [[("a", b"{}"), ("b", b"{}")]]

    play(scenario)


def test_a_lease_that_is_kept_alive_is_not_taken(play: Play) -> None:
    async def scenario(queue: JudgementQueue, _: Any) -> None:
        await submit(queue, "kept", "left")
        kept, left = await fetch(queue, "w1")
        until = asyncio.get_running_loop().time() + 20
        taken: list[Lease] = []
        while not taken and asyncio.get_running_loop().time() < until:
            await queue.keep_alive("w1", [kept], "{}", 10)
            taken = await queue.reclaim("w2", 1000, 8)
        assert ids(taken) == ["left"]
        assert taken[0].deliveries == 2
        # Heartbeats are no deliveries.
        [now] = [lease for lease in await queue.reclaim("w2", 0, 8) if lease.id == "kept"]
        assert now.deliveries == 2
        assert left.entry == taken[0].entry

    play(scenario)


def test_reclaim_goes_on_where_it_stopped(play: Play) -> None:
    async def scenario(queue: JudgementQueue, _: Any) -> None:
        await submit(queue, *(f"i{n}" for n in range(10)))
        await queue.fetch("w1", 10, 0)
        seen = [*ids(await queue.reclaim("w2", 0, 4)), *ids(await queue.reclaim("w2", 0, 4))]
        seen += ids(await queue.reclaim("w2", 0, 4))
        assert sorted(seen) == sorted(f"i{n}" for n in range(10))

    play(scenario)


def test_an_item_that_redis_forgot_is_not_brought_back(play: Play, redis_prefix: str) -> None:
    async def scenario(queue: JudgementQueue, redis: Any) -> None:
        await submit(queue, "a")
        leases = await fetch(queue, "w")
        await redis.delete(JudgeKeys(redis_prefix).item("a"))
        assert await queue.complete([Completion(lease, "{}") for lease in leases]) == 0
        assert await queue.lookup(["a"]) == [Unknown()]
        assert sum((await queue.depth()).values()) == 0

    play(scenario)


def test_a_worker_counts_until_its_time_is_up(play: Play, redis_prefix: str) -> None:
    async def scenario(queue: JudgementQueue, redis: Any) -> None:
        await queue.keep_alive("w1", [], '{"worker": "w1"}', 100)
        await queue.keep_alive("w2", [], '{"worker": "w2"}', 100)
        assert await queue.workers() == [{"worker": "w1"}, {"worker": "w2"}]
        # A killed one: its key's time is up, its place in the set is not cleared by itself.
        await redis.delete(JudgeKeys(redis_prefix).worker("w2"))
        assert await queue.workers() == [{"worker": "w1"}]
        await queue.sign_off("w1")
        assert await queue.workers() == []

    play(scenario)


CONTROLS = Controls(
    {"demo-v1": load_controls("demo-v1", ScoreKind.RULES)}, every_s=300, deadline_s=60, trusting=True
)
"""The backends here are no judges."""

SETTINGS = WorkerSettings(
    batch_size=8, linger_ms=0, concurrency=1, lease_s=0.3, max_deliveries=3, redis_deadline_s=5
)


async def work_until(worker: Worker, queue: JudgementQueue, names: list[str]) -> list[Any]:
    """Run the worker until every name has a verdict, then drain it."""
    running = asyncio.create_task(worker.run())
    while not all(isinstance(found, Terminal) for found in await queue.lookup(names)):
        await asyncio.wait([running], timeout=0.02)
        if running.done():
            break
    worker.drain()
    await running
    return [json.loads(f.verdict) for f in await queue.lookup(names) if isinstance(f, Terminal)]


def a_worker(queue: JudgementQueue, backend: Any = None) -> Worker:
    return Worker(queue, backend or RulesBackend(), {"demo-v1": load_rubric("demo-v1")}, SETTINGS, CONTROLS)


def test_what_was_handed_out_too_often_becomes_a_dead_letter(play: Play, redis_prefix: str) -> None:
    async def scenario(queue: JudgementQueue, redis: Any) -> None:
        await submit(queue, "poison", "good")
        [_, good] = await fetch(queue, "w0")
        await queue.complete([Completion(good, "{}")])
        for n in range(1, 3):
            assert ids(await queue.reclaim(f"w{n}", 0, 8)) == ["poison"]

        [verdict] = await work_until(a_worker(queue), queue, ["poison"])

        assert (verdict["status"], verdict["error"]["code"]) == ("failed", "server_error")
        assert "handed to 3 workers" in verdict["error"]["message"]
        [(_, letter)] = await redis.xrange(JudgeKeys(redis_prefix).dead)
        assert letter[b"id"] == b"poison"
        assert json.loads(letter[b"body"]) == {"prompt": "text", "response": "poison"}
        assert sum((await queue.depth()).values()) == 0

    play(scenario)


class Recording:
    """Remembers how it was asked."""

    info = BackendInfo("recording", "none", ScoreKind.RULES, 1)

    def __init__(self, answers: Callable[[int], list[Grade | GradeFailure]]) -> None:
        self.sizes: list[int] = []
        self._answers = answers

    async def judge(self, batch: Any) -> list[Grade | GradeFailure]:
        self.sizes.append(len(batch))
        return self._answers(len(batch))

    async def close(self) -> None:
        return None


def test_suspects_are_judged_alone(play: Play) -> None:
    async def scenario(queue: JudgementQueue, _: Any) -> None:
        backend = Recording(lambda n: [Grade(0.0, 1)] * n)
        await submit(queue, "a", "b", "c")
        await queue.fetch("w0", 8, 0)
        await queue.reclaim("w1", 0, 8)
        verdicts = await work_until(a_worker(queue, backend), queue, ["a", "b", "c"])
        assert backend.sizes == [1, 1, 1]
        assert {verdict["status"] for verdict in verdicts} == {"scored"}

    play(scenario)


def test_a_backend_that_miscounts_gives_no_scores(play: Play) -> None:
    async def scenario(queue: JudgementQueue, _: Any) -> None:
        backend = Recording(lambda n: [Grade(0.0, 1)] * (n - 1))
        await submit(queue, "a", "b")
        verdicts = await work_until(a_worker(queue, backend), queue, ["a", "b"])
        assert [v["error"]["message"] for v in verdicts] == ["the backend gave 1 answers to 2 items"] * 2

    play(scenario)


def test_a_backend_that_breaks_ends_the_worker_and_not_the_item(play: Play) -> None:
    def broken(_: int) -> list[Grade | GradeFailure]:
        raise KeyError("a defect")

    async def scenario(queue: JudgementQueue, _: Any) -> None:
        await submit(queue, "a")
        with pytest.raises(ExceptionGroup) as caught:
            await a_worker(queue, Recording(broken)).run()
        assert caught.group_contains(KeyError)
        assert await queue.lookup(["a"]) == [Waiting()]
        [verdict] = await work_until(a_worker(queue), queue, ["a"])
        assert verdict["status"] == "scored"

    play(scenario)


def test_a_rubric_that_the_judge_does_not_know_is_a_failure(play: Play) -> None:
    async def scenario(queue: JudgementQueue, _: Any) -> None:
        other = [new_item("a", JudgementItem(prompt="p", response="r"), "other")]
        await queue.submit(other, rubric="other", priority=Priority.TARGET)
        [verdict] = await work_until(a_worker(queue), queue, ["a"])
        assert verdict["error"]["code"] == "server_error"
        assert "cannot grade by rubric 'other'" in verdict["error"]["message"]

    play(scenario)


def test_requests_reach_the_backend_whole(play: Play) -> None:
    seen: list[GradeRequest] = []

    class Keeping(RulesBackend):
        async def judge(self, batch: Any) -> list[Grade | GradeFailure]:
            seen.extend(batch)
            return await super().judge(batch)

    async def scenario(queue: JudgementQueue, _: Any) -> None:
        item = JudgementItem.model_validate(
            {"prompt": [{"role": "system", "content": "s\n\0é🙂"}], "response": "r\r\n"}
        )
        await queue.submit([new_item("a", item, "demo-v1")], rubric="demo-v1", priority=Priority.TARGET)
        await work_until(a_worker(queue, Keeping()), queue, ["a"])
        [request] = seen
        assert request.prompt == item.prompt
        assert request.response == item.response

    play(scenario)
