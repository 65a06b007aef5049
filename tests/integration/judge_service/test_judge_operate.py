"""`tether judge status`, `drain`, `breaker` and `dead` on a running service."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import redis
from typer.testing import CliRunner

from judge_service.cli import app
from judge_service.queue.streams import GROUP, JudgementQueue, connect
from shared.embedded_redis import RunningRedis
from shared.errors import ConfigError, ServiceError
from shared.redis_keys import JudgeKeys
from shared.wire import JudgementList
from tests.waiting import until

pytestmark = pytest.mark.integration

Operate = Callable[..., Any]
Submission = Callable[..., dict[str, Any]]


@pytest.fixture
def operate(redis_server: RunningRedis, redis_prefix: str) -> Operate:
    """Run a command of `tether judge`; its JSON, or its text where `--json` is not asked for."""

    def run(*args: str) -> Any:
        env = {"REDIS_URL": redis_server.url, "TETHER_JUDGE_KEY_PREFIX": redis_prefix, "COLUMNS": "200"}
        result = CliRunner().invoke(app, list(args), env=env)
        if result.exception is not None:
            raise result.exception
        return json.loads(result.stdout) if "--json" in args else result.stdout

    return run


def scored(client: httpx.Client, body: dict[str, Any]) -> list[Any]:
    response = client.post("/v1/judgements", json={**body, "wait_s": 30})
    assert response.status_code == 200, response.text
    items = JudgementList.model_validate_json(response.content).items
    assert {item.status for item in items} == {"scored"}
    return items


def test_a_held_service_takes_nothing_until_it_is_let_go(
    processes: Any, submission: Submission, operate: Operate
) -> None:
    client = processes.api()
    worker = processes.worker("--lease-s", "1").ready["worker"]
    scored(client, submission(1))
    assert operate("breaker", "open", "--reason", "upgrade", "--json") == {"held": "all", "reason": "upgrade"}

    def shown() -> tuple[str, str, str]:
        breaker = operate("breaker", "status", "--json")["breakers"][worker]
        return breaker["state"], breaker["reason"], breaker["detail"]

    until(lambda: shown() == ("open", "operator", "upgrade"), "the worker has heard")
    body = submission(2, start=1)
    assert client.post("/v1/judgements", json={**body, "wait_s": 2}).status_code == 202
    status = operate("status", "--json")
    assert status["queue"]["target"]["depth"] == 2
    assert status["queue"]["target"]["in_flight"] == 0
    assert status["queue"]["target"]["oldest_age_s"] >= 2
    assert status["holds"]["*"]["reason"] == "upgrade"
    text = operate("status")
    assert worker in text
    assert "operator: upgrade" in text

    operate("breaker", "close")
    scored(client, body)
    assert operate("status", "--json")["holds"] == {}


def test_a_drain_waits_for_what_is_in_hand_and_stops_only_its_worker(
    processes: Any, submission: Submission, operate: Operate
) -> None:
    client = processes.api()
    slow = processes.worker("--faulty", "delay_s=3", "--lease-s", "1", "--batch-size", "2").ready["worker"]
    body = submission(2)
    assert client.post("/v1/judgements", json=body).status_code == 202
    until(lambda: operate("status", "--json")["queue"]["target"]["in_flight"] == 2, "it is taken")
    began = time.monotonic()
    assert operate("drain", "--worker", slow, "--json") == {"drained": slow, "finished": 2, "waiting": 0}
    assert time.monotonic() - began > 1
    read = client.post("/v1/judgements/read", json={"ids": ["item-0", "item-1"]}).json()
    assert {item["status"] for item in read["items"]} == {"scored"}
    # Another one goes on.
    processes.worker()
    other = scored(client, submission(4, start=2))
    assert {item.judge.kind for item in other} == {"rules"}
    with pytest.raises(ServiceError, match="no worker 'nobody' is alive"):
        operate("drain", "--worker", "nobody")


def test_a_drain_that_takes_too_long_says_so_and_holds_on(
    processes: Any, submission: Submission, operate: Operate
) -> None:
    client = processes.api()
    processes.worker("--faulty", "delay_s=600", "--lease-s", "1", "--grace-s", "0")
    client.post("/v1/judgements", json=submission(2))
    until(lambda: operate("status", "--json")["queue"]["target"]["in_flight"] == 2, "it is taken")
    with pytest.raises(ServiceError, match="not drained within 1 s"):
        operate("drain", "--timeout-s", "1")
    assert operate("status", "--json")["holds"]["*"]["reason"] == "drained"


def test_a_dead_letter_is_retried_under_a_new_id(
    processes: Any, submission: Submission, operate: Operate, redis_server: RunningRedis, redis_prefix: str
) -> None:
    client = processes.api()
    body = submission(1, group="g", priority="policy")
    assert client.post("/v1/judgements", json=body).status_code == 202

    async def hand_out(times: int) -> None:
        queue = JudgementQueue(connect(redis_server.url), JudgeKeys(redis_prefix))
        await queue.create_groups()
        assert len((await queue.fetch("w0", 8, 0)).leases) == 1
        for n in range(1, times):
            assert len(await queue.reclaim(f"w{n}", 0, 8)) == 1
        await queue.close()

    asyncio.run(hand_out(4))
    processes.worker("--lease-s", "1")
    read = {"ids": ["item-0"], "wait_s": 20}
    [failed] = client.post("/v1/judgements/read", json=read).json()["items"]
    assert failed["error"]["message"] == "given up: handed to 4 workers, and none came to its end"

    [letter] = operate("dead", "list", "--json")
    assert (letter["id"], letter["rubric"], letter["group"]) == ("item-0", "demo-v1", "g")
    assert letter["message"] == failed["error"]["message"]
    assert "prompt" not in letter
    [whole] = operate("dead", "list", "--json", "--text")
    assert whole["prompt"] == body["items"][0]["prompt"]
    assert "item-0" in operate("dead", "list")
    with pytest.raises(ConfigError, match="no dead letter item-9"):
        operate("dead", "retry", "item-9")
    with pytest.raises(ConfigError, match="--text needs --json"):
        operate("dead", "list", "--text")

    [retried] = operate("dead", "retry", "item-0", "--json")
    assert retried == {"id": letter["retry_id"], "retry_of": "item-0"}
    assert retried["id"].startswith("item-0@retry-")
    again = client.post("/v1/judgements/read", json={"ids": [retried["id"]], "wait_s": 20}).json()["items"]
    assert [item["status"] for item in again] == ["scored"]
    # The first verdict stays, and the letter is gone.
    assert client.post("/v1/judgements/read", json=read).json()["items"] == [failed]
    assert operate("dead", "list", "--json") == []


def test_a_stop_gives_back_what_it_cannot_finish(
    processes: Any, submission: Submission, redis_server: RunningRedis, redis_prefix: str
) -> None:
    client = processes.api()
    stuck = processes.worker("--faulty", "delay_s=600", "--grace-s", "1", "--max-deliveries", "1")
    body = submission(8)
    assert client.post("/v1/judgements", json=body).status_code == 202
    stream = JudgeKeys(redis_prefix).streams()[1]
    with redis.Redis.from_url(redis_server.url) as db:

        def held() -> set[tuple[bytes, int]]:
            entries = db.xpending_range(stream, GROUP, "-", "+", 100)
            return {(entry["consumer"], entry["times_delivered"]) for entry in entries}

        name = stuck.ready["worker"].encode()
        until(lambda: held() == {(name, 1)}, "it is taken")
        began = time.monotonic()
        assert stuck.stop(grace_s=20) == 0
        assert 1 <= time.monotonic() - began < 10
        assert held() == {(b"released", 0)}
        # Its consumer is gone, as it holds nothing.
        assert [info["name"] for info in db.xinfo_consumers(stream, GROUP)] == [b"released"]
    # Taken up at once, long before any lease would be over.
    processes.worker("--lease-s", "60", "--max-deliveries", "1")
    scored(client, body)


def test_a_second_signal_hurries_the_stop(processes: Any, submission: Submission) -> None:
    client = processes.api()
    stuck = processes.worker("--faulty", "delay_s=600", "--grace-s", "600", "--lease-s", "1")
    assert client.post("/v1/judgements", json=submission(2)).status_code == 202

    def said() -> tuple[int, bool]:
        [info] = client.get("/readyz").json()["components"]["workers"]["items"]
        return info["in_hand"], info["draining"]

    until(lambda: said() == (2, False), "it is taken")
    stuck.process.terminate()
    until(lambda: said() == (2, True), "it goes on with what it holds")
    stuck.process.terminate()
    assert stuck.process.wait(10) == 0


def test_consumers_of_dead_workers_go_when_they_hold_nothing(
    processes: Any, submission: Submission, redis_server: RunningRedis, redis_prefix: str
) -> None:
    client = processes.api()
    killed = processes.worker("--faulty", "delay_s=600", "--lease-s", "1")
    body = submission(4)
    assert client.post("/v1/judgements", json=body).status_code == 202
    stream = JudgeKeys(redis_prefix).streams()[1]
    with redis.Redis.from_url(redis_server.url) as db:

        def consumers() -> dict[bytes, int]:
            return {info["name"]: info["pending"] for info in db.xinfo_consumers(stream, GROUP)}

        name = killed.ready["worker"].encode()
        until(lambda: consumers().get(name) == 4, "it holds all")
        killed.process.kill()
        killed.process.wait()
        alive = processes.worker("--lease-s", "1").ready["worker"].encode()
        scored(client, body)
        until(lambda: set(consumers()) == {alive}, "the dead worker's consumer is cleared away")
