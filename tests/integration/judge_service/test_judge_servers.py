"""The servers that the queue promises to work on, through a restart of each."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from redis_servers import SERVERS

from judge_service.queue.items import Completion, Lease, Terminal, new_item
from judge_service.queue.leases import RELEASED, Leases
from judge_service.queue.streams import GROUP, JudgementQueue, connect
from judge_service.worker.trust import Unvouched, suspects_of
from shared.embedded_redis import RunningRedis, running_redis
from shared.redis_keys import JudgeKeys
from shared.wire import JudgementItem, Priority

pytestmark = pytest.mark.integration

VERDICT = '{"id":"%s","status":"scored","rationale":"\\"suspect\\":false","suspect":false,"error":null}'


@pytest.mark.parametrize("promised", ["redis 6.2", "valkey 9"])
def test_the_oldest_and_the_newest_are_there(promised: str) -> None:
    assert any(name.startswith(promised) for name in SERVERS)


async def submit(queue: JudgementQueue, *names: str) -> None:
    batch = [new_item(name, JudgementItem(prompt="p", response=name), "demo-v1") for name in names]
    await queue.submit(batch, rubric="demo-v1", priority=Priority.TARGET, group="g")


async def fetched(queue: JudgementQueue, worker: str) -> list[Lease]:
    return (await queue.fetch(worker, 100, 0)).leases


@pytest.mark.parametrize("name", SERVERS)
def test_a_restart_keeps_what_was_taken_and_what_was_done(name: str, tmp_path: Path) -> None:
    async def main(server: RunningRedis) -> None:
        queue = JudgementQueue(connect(server.url), JudgeKeys())
        await queue.create_groups()
        await submit(queue, "done", "held", "given-back", "waiting")
        [done, held, given, _] = await fetched(queue, "w1")
        await submit(queue, "late")
        await queue.complete([Completion(done, "{}")])
        assert await Leases(queue.redis, queue.keys).release("w1", [given]) == 1
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)

        assert await queue.lookup(["done"]) == [Terminal(b"{}")]
        assert sum((await queue.depth()).values()) == 4
        # The heartbeat of one that is alive goes on.
        await queue.keep_alive("w1", [held], "{}", 10)
        counts = {lease.id: lease.deliveries for lease in await queue.reclaim("w2", 0, 100)}
        assert counts == {"held": 2, "given-back": 1, "waiting": 2}
        assert [lease.id for lease in await fetched(queue, "w2")] == ["late"]
        await queue.close()

    with running_redis(tmp_path, SERVERS[name]) as server:
        asyncio.run(main(server))


@pytest.fixture
def redis_server(any_redis: RunningRedis) -> RunningRedis:
    return any_redis


def on_a_queue(server: RunningRedis, prefix: str, scenario: Any) -> None:
    async def main() -> None:
        queue = JudgementQueue(connect(server.url), JudgeKeys(prefix), result_ttl_s=100)
        await queue.create_groups()
        try:
            await scenario(queue)
        finally:
            await queue.close()

    asyncio.run(main())


def test_only_what_one_holds_can_be_given_back(redis_server: RunningRedis, redis_prefix: str) -> None:
    async def scenario(queue: JudgementQueue) -> None:
        leases = Leases(queue.redis, queue.keys)
        await submit(queue, "a", "b", "c")
        mine = await fetched(queue, "w1")
        [taken, *_] = await queue.reclaim("w2", 0, 1)
        await queue.complete([Completion(mine[2], "{}")])
        assert await leases.release("w1", mine) == 1
        pending = await queue.redis.xpending_range(mine[0].stream, GROUP, "-", "+", 10)
        holders = {entry["message_id"].decode(): entry["consumer"].decode() for entry in pending}
        assert holders == {taken.entry: "w2", mine[1].entry: RELEASED}

    on_a_queue(redis_server, redis_prefix, scenario)


def test_no_consumer_goes_that_holds_anything_or_is_alive(
    redis_server: RunningRedis, redis_prefix: str
) -> None:
    async def scenario(queue: JudgementQueue) -> None:
        leases = Leases(queue.redis, queue.keys)
        assert await leases.tidy(0) == 0
        await submit(queue, "a")
        for worker in ("holds", "alive", "gone"):
            await fetched(queue, worker)
        await queue.keep_alive("alive", [], "{}", 100)
        stream = queue.keys.streams()[1]

        async def consumers() -> set[str]:
            return {info["name"].decode() for info in await queue.redis.xinfo_consumers(stream, GROUP)}

        assert await consumers() >= {"holds"}
        await leases.tidy(3_600_000)
        assert await consumers() >= {"holds"}, "nobody is idle for so long"
        await leases.tidy(0)
        assert "holds" in await consumers()
        assert "gone" not in await consumers()
        await leases.tidy(0, going="alive")
        assert await consumers() == {"holds"}
        assert [lease.id for lease in await queue.reclaim("next", 0, 10)] == ["a"]

    on_a_queue(redis_server, redis_prefix, scenario)


def test_marks_reach_verdicts_and_nothing_else(redis_server: RunningRedis, redis_prefix: str) -> None:
    async def scenario(queue: JudgementQueue) -> None:
        unvouched = Unvouched(queue.redis, queue.keys, "judge", "w1", 100)
        await submit(queue, "old", "new", "failed", "in-flight")
        leases = {lease.id: lease for lease in await fetched(queue, "w1")}
        await unvouched.note([leases["old"]], 10.0)
        await unvouched.note([leases["new"], leases["failed"], leases["in-flight"]], 20.0)
        failed = '{"id":"failed","status":"failed","suspect":false}'
        texts = {"old": VERDICT % "old", "new": VERDICT % "new", "failed": failed}
        await queue.complete([Completion(leases[one], text) for one, text in texts.items()])
        await unvouched.vouch(20.0)

        marked = await unvouched.mark()

        assert [(lease.id, lease.rubric) for lease in marked] == [("new", "demo-v1")]
        assert marked[0].content_hash == leases["new"].content_hash
        expected = texts["new"].replace('"suspect":false,"error"', '"suspect":true,"error"')
        assert await queue.lookup(["old", "new", "failed"]) == [
            Terminal(texts["old"].encode()),
            Terminal(expected.encode()),
            Terminal(failed.encode()),
        ]
        assert await suspects_of(queue.redis, queue.keys, "g") == ["new"]
        # What got its verdict meanwhile is marked by marking again; what is marked stays as it is.
        await queue.complete([Completion(leases["in-flight"], VERDICT % "in-flight")])
        assert [lease.id for lease in await unvouched.mark()] == ["in-flight"]
        assert await unvouched.mark() == []

    on_a_queue(redis_server, redis_prefix, scenario)
