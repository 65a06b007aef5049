"""Whoever dies: every acknowledged id reaches exactly one verdict."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from judge_service.queue.streams import GROUP, verdicts_in
from shared.embedded_redis import RunningRedis, running_redis
from shared.redis_keys import JudgeKeys
from shared.wire import JudgementList, Priority
from tests.waiting import until

pytestmark = pytest.mark.integration

Submission = Callable[..., dict[str, Any]]


def pending(db: Any, prefix: str) -> int:
    streams = JudgeKeys(prefix).streams()
    return sum(db.xpending(name, GROUP)["pending"] for name in streams if db.exists(name))


def verdicts(client: httpx.Client, body: dict[str, Any]) -> list[Any]:
    until = time.monotonic() + 60
    while True:
        response = client.post("/v1/judgements", json={**body, "wait_s": 10})
        assert response.status_code in (200, 202), response.text
        if response.status_code == 200:
            return JudgementList.model_validate_json(response.content).items
        assert time.monotonic() < until, "no verdicts within 60 s"


def test_a_killed_workers_items_are_taken_over(
    processes: Any, submission: Submission, redis_server: RunningRedis, redis_prefix: str
) -> None:
    with redis.Redis.from_url(redis_server.url) as db, db.pubsub(ignore_subscribe_messages=True) as news:
        news.subscribe(JudgeKeys(redis_prefix).verdicts)
        news.get_message(timeout=5)  # the subscription itself
        client = processes.api()
        slow = processes.worker("--faulty", "delay_s=600", "--lease-s", "1", "--concurrency", "2")
        client.post("/v1/judgements", json=submission(40))
        until(lambda: pending(db, redis_prefix) == 40, "the slow worker holds everything")

        slow.process.kill()
        slow.process.wait()
        processes.worker("--lease-s", "1")
        done = verdicts(client, submission(40))

        assert {v.status for v in done} == {"scored"}
        assert {v.judge.kind for v in done} == {"rules"}
        assert pending(db, redis_prefix) == 0
        heard: Counter[str] = Counter()
        while message := news.get_message(timeout=0.5):
            heard.update(judgement_id for judgement_id, _ in verdicts_in(message["data"]))
        assert heard == {f"item-{n}": 1 for n in range(40)}


def test_a_drained_worker_finishes_what_it_holds(
    processes: Any, submission: Submission, redis_server: RunningRedis, redis_prefix: str
) -> None:
    client = processes.api()
    worker = processes.worker("--faulty", "delay_s=1", "--batch-size", "4", "--concurrency", "2")
    client.post("/v1/judgements", json=submission(20))
    with redis.Redis.from_url(redis_server.url) as db:
        until(lambda: pending(db, redis_prefix) == 8, "two batches are in flight")
        assert worker.stop(grace_s=20) == 0
        # What it held is done; what it had not taken waits for another.
        assert pending(db, redis_prefix) == 0
        left = db.xlen(JudgeKeys(redis_prefix).stream(Priority.TARGET))
        assert 0 < left <= 12
        assert left % 4 == 0


def test_a_delay_does_not_queue_batches_behind_each_other(processes: Any, submission: Submission) -> None:
    client = processes.api()
    processes.worker("--faulty", "delay_s=1", "--batch-size", "4", "--concurrency", "16")
    began = time.monotonic()
    verdicts(client, submission(64))
    assert 1 <= time.monotonic() - began < 8


def test_acknowledged_items_survive_a_killed_redis(
    processes_on: Callable[[str], Any], submission: Submission, tmp_path: Path
) -> None:
    with running_redis(tmp_path / "redis") as server:
        processes = processes_on(server.url)
        client = processes.api()
        processes.worker("--faulty", "delay_s=0.3", "--batch-size", "8", "--lease-s", "1")
        acknowledged = [submission(16, start=16 * n) for n in range(8)]
        for body in acknowledged[:6]:
            assert client.post("/v1/judgements", json=body).status_code == 202

        server.kill()
        assert client.get("/readyz").status_code == 503
        away = client.post("/v1/judgements", json=acknowledged[6])
        assert away.status_code == 503
        assert away.headers["retry-after"]
        assert away.headers["content-type"] == "application/problem+json"
        server.start()

        # One that was refused may be sent again, and none that was accepted needs to be.
        assert client.post("/v1/judgements", json=acknowledged[7]).status_code in (200, 202)
        ids = [item["id"] for body in [*acknowledged[:6], acknowledged[7]] for item in body["items"]]

        def all_done() -> bool:
            read = client.post("/v1/judgements/read", json={"ids": ids})
            assert read.status_code == 200, read.text
            return {item["status"] for item in read.json()["items"]} == {"scored"}

        until(all_done, "every acknowledged item is scored", within_s=60)
        with redis.Redis.from_url(server.url) as db:
            until(lambda: pending(db, "test:") == 0, "nothing is left in flight")
            assert db.xlen(JudgeKeys("test:").stream(Priority.TARGET)) == 0


def test_a_poll_that_is_open_while_redis_dies_is_no_500(
    processes_on: Callable[[str], Any], submission: Submission, tmp_path: Path
) -> None:
    import threading

    with running_redis(tmp_path / "redis") as server:
        processes = processes_on(server.url)
        client = processes.api()
        client.post("/v1/judgements", json=submission(1))
        answers: list[httpx.Response] = []
        poller = threading.Thread(
            target=lambda: answers.append(
                client.post("/v1/judgements/read", json={"ids": ["item-0"], "wait_s": 20})
            )
        )
        poller.start()
        server.kill()
        poller.join(40)
        assert [answer.status_code for answer in answers] == [503]
        server.start()
        processes.worker()
        assert verdicts(client, submission(1))[0].status == "scored"
