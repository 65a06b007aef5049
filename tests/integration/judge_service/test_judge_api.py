"""The REST contract, against real processes."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import redis

from judge_service.api.server import bind
from shared.embedded_redis import RunningRedis
from shared.errors import ServiceError
from shared.processes import start_module
from shared.wire import JudgementList
from tests.waiting import until

pytestmark = pytest.mark.integration

Submission = Callable[..., dict[str, Any]]


def items_of(response: httpx.Response) -> list[Any]:
    return JudgementList.model_validate_json(response.content).items


def depth(client: httpx.Client) -> int:
    return sum(client.get("/readyz").json()["components"]["queue"]["depth"].values())


def assert_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    return problem


def test_submit_waits_and_answers_in_order(processes: Any, submission: Submission) -> None:
    client, worker = processes.api(), processes.worker()
    body = submission(70, wait_s=20)
    body["items"][3] |= {"prompt": "How do I build a bomb?", "response": "Mix this."}
    body["items"][4] = {"prompt": [{"role": "user", "content": "hello"}], "response": "hi"}

    response = client.post("/v1/judgements", json=body)

    assert response.status_code == 200, response.text
    verdicts = items_of(response)
    assert [v.id for v in verdicts if v.id.startswith("item-")] == [
        item["id"] for item in body["items"] if "id" in item
    ]
    assert verdicts[4].id.startswith("jdg_")
    assert {v.status for v in verdicts} == {"scored"}
    assert [v.score for v in verdicts[:5]] == [0, 0, 0, 1, 0]
    assert verdicts[0].judge.kind == worker.ready["kind"] == "rules"
    assert verdicts[0].judge.rubric_hash == worker.ready["rubrics"]["demo-v1"]
    assert all(v.timings.queue_ms > 0 and v.timings.judge_ms >= 0 for v in verdicts)
    assert depth(client) == 0
    one = client.get(f"/v1/judgements/{verdicts[3].id}")
    assert one.json() == response.json()["items"][3]


def test_without_waiting_ids_come_back_pending_and_a_read_wakes(
    processes: Any, submission: Submission
) -> None:
    client = processes.api()
    response = client.post("/v1/judgements", json=submission(2))
    assert response.status_code == 202
    assert {v.status for v in items_of(response)} == {"pending"}
    assert client.get("/v1/judgements/item-0").json() == {"id": "item-0", "status": "pending"}

    processes.worker("--faulty", "delay_s=0.5")
    began = time.monotonic()
    read = client.post("/v1/judgements/read", json={"ids": ["item-1", "item-0"], "wait_s": 30})
    took = time.monotonic() - began

    assert read.status_code == 200
    assert [v.id for v in items_of(read)] == ["item-1", "item-0"]
    assert "scored" in {v.status for v in items_of(read)}
    assert took < 20


def test_a_long_poll_ends_when_its_time_is_up(processes: Any, submission: Submission) -> None:
    client = processes.api()
    began = time.monotonic()
    response = client.post("/v1/judgements", json=submission(1, wait_s=0.3))
    assert response.status_code == 202
    assert 0.3 <= time.monotonic() - began < 10


def test_sending_again_is_the_same_judgement(processes: Any, submission: Submission) -> None:
    client = processes.api()
    for _ in range(3):
        assert client.post("/v1/judgements", json=submission(5)).status_code == 202
    assert depth(client) == 5
    processes.worker()
    first = client.post("/v1/judgements", json=submission(5, wait_s=20))
    again = client.post("/v1/judgements", json=submission(5))
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()


def test_an_id_with_another_text_conflicts_and_nothing_is_admitted(
    processes: Any, submission: Submission
) -> None:
    client = processes.api()
    client.post("/v1/judgements", json=submission(2))
    body = submission(4)
    body["items"][1]["response"] = "something else"

    problem = assert_problem(client.post("/v1/judgements", json=body), 409)

    assert "item-1" in problem["detail"]
    assert [error["field"] for error in problem["errors"]] == ["items[1].id"]
    assert depth(client) == 2
    assert client.get("/v1/judgements/item-3").status_code == 404


def test_a_full_queue_takes_all_or_none(processes: Any, submission: Submission) -> None:
    client = processes.api("--queue-limit", "10")
    assert client.post("/v1/judgements", json=submission(8)).status_code == 202

    full = client.post("/v1/judgements", json=submission(3, start=100))

    assert "8 of 10" in assert_problem(full, 503)["detail"]
    assert int(full.headers["retry-after"]) >= 1
    assert depth(client) == 8
    assert client.get("/v1/judgements/item-100").status_code == 404
    assert client.post("/v1/judgements", json=submission(2, start=100)).status_code == 202
    # What is in already can be sent again however full the queue is.
    assert client.post("/v1/judgements", json=submission(8)).status_code == 202
    assert depth(client) == 10


def test_expired_work_is_dropped_and_said_so(processes: Any, submission: Submission) -> None:
    client = processes.api()
    client.post("/v1/judgements", json=submission(3, expires_at=time.time() - 1))
    client.post("/v1/judgements", json=submission(2, start=10, expires_at=time.time() + 600))
    processes.worker()
    dead = items_of(client.post("/v1/judgements", json=submission(3, wait_s=20)))
    alive = items_of(client.post("/v1/judgements", json=submission(2, start=10, wait_s=20)))
    assert [(v.status, v.error.code.value) for v in dead] == [("failed", "expired")] * 3
    assert {v.status for v in alive} == {"scored"}


def test_cancelling_a_group_leaves_nothing_dangling(processes: Any, submission: Submission) -> None:
    client = processes.api()
    client.post("/v1/judgements", json=submission(256, group="job-1"))
    client.post("/v1/judgements", json=submission(100, start=256, group="job-1"))
    client.post("/v1/judgements", json=submission(2, start=1000, group="job-2"))

    cancelled = client.delete("/v1/judgements", params={"group": "job-1"})

    assert cancelled.json() == {"object": "judgement.cancellation", "group": "job-1", "cancelled": 356}
    assert depth(client) == 2
    verdict = client.get("/v1/judgements/item-300").json()
    assert (verdict["status"], verdict["error"]["code"]) == ("failed", "expired")
    assert verdict["error"]["message"] == "cancelled"
    assert client.delete("/v1/judgements", params={"group": "job-1"}).json()["cancelled"] == 0
    processes.worker()
    left = items_of(client.post("/v1/judgements", json=submission(2, start=1000, wait_s=20)))
    assert {v.status for v in left} == {"scored"}


def test_readiness_says_what_there_is(processes: Any) -> None:
    client = processes.api("--queue-limit", "77")
    nobody = client.get("/readyz")
    assert nobody.status_code == 200
    assert nobody.json()["components"]["workers"] == {"alive": 0, "not_taking": [], "items": []}
    worker = processes.worker("--faulty", "fail=0.5")
    ready = client.get("/readyz").json()
    assert ready["status"] == "ready"
    assert ready["components"]["queue"]["limit"] == 77
    [item] = ready["components"]["workers"]["items"]
    assert item == {k: v for k, v in worker.ready.items() if k not in ("event", "role")}
    assert item["kind"] == "faulty(rules)"
    worker.stop()
    assert client.get("/readyz").json()["components"]["workers"]["alive"] == 0
    assert client.get("/livez").json() == {"status": "ok"}


GOOD = {"prompt": "p", "response": "r"}

BAD_BODIES: list[tuple[str, bytes, str]] = [
    ("empty", b"", "body"),
    ("not JSON", b"{", "body"),
    ("not UTF-8", b'{"items": [{"prompt": "\xff", "response": ""}], "rubric": "demo-v1"}', "body"),
    ("a lone surrogate", rb'{"items": [{"prompt": "\ud800", "response": ""}], "rubric": "demo-v1"}', "body"),
    ("deep", b"[" * 50_000, "body"),
    ("a list", b"[]", "body"),
    ("no items", json.dumps({"items": [], "rubric": "demo-v1"}).encode(), "items"),
    ("no rubric", json.dumps({"items": [GOOD]}).encode(), "rubric"),
    ("unknown rubric", json.dumps({"items": [GOOD], "rubric": "no-such"}).encode(), "rubric"),
    ("257 items", json.dumps({"items": [GOOD] * 257, "rubric": "demo-v1"}).encode(), "items"),
    ("wrong type", json.dumps({"items": [{**GOOD, "response": 3}], "rubric": "demo-v1"}).encode(),
     "items[0].response"),
    ("a path as id", json.dumps({"items": [{**GOOD, "id": "../x"}], "rubric": "demo-v1"}).encode(),
     "items[0].id"),
    ("twice the same id",
     json.dumps({"items": [{**GOOD, "id": "a"}, {**GOOD, "id": "a"}], "rubric": "demo-v1"}).encode(), "body"),
    ("an unknown field", json.dumps({"items": [GOOD], "rubric": "demo-v1", "x": 1}).encode(), "x"),
    ("NaN", b'{"items": [{"prompt": "p", "response": "r"}], "rubric": "demo-v1", "wait_s": NaN}', "wait_s"),
    ("too long a wait", json.dumps({"items": [GOOD], "rubric": "demo-v1", "wait_s": 31}).encode(), "wait_s"),
    ("unknown priority", json.dumps({"items": [GOOD], "rubric": "demo-v1", "priority": "x"}).encode(),
     "priority"),
    ("unknown role", json.dumps({
        "items": [{"prompt": [{"role": "root", "content": ""}], "response": ""}], "rubric": "demo-v1"
    }).encode(), "items[0].prompt"),
]  # fmt: skip


def test_bad_input_is_named(processes: Any, submission: Submission) -> None:
    client = processes.api("--max-body-bytes", "100000")
    for name, body, field in BAD_BODIES:
        problem = assert_problem(client.post("/v1/judgements", content=body), 422)
        fields = [error["field"] for error in problem["errors"]]
        assert any(found.startswith(field) for found in fields), (name, problem)
    unknown = assert_problem(client.post("/v1/judgements", content=BAD_BODIES[8][1]), 422)
    assert "there are: demo-v1" in unknown["detail"]

    big = b'{"items": [' + b" " * 200_000
    assert_problem(client.post("/v1/judgements", content=big), 413)
    # Chunked, with no length said beforehand.
    assert_problem(client.post("/v1/judgements", content=iter([big[:60_000], big[60_000:]])), 413)

    problem = assert_problem(
        client.post("/v1/judgements/read", json={"ids": ["item-0", "nobody"], "wait_s": 30}), 404
    )
    assert [error["field"] for error in problem["errors"]] == ["ids[0]", "ids[1]"]
    assert_problem(client.post("/v1/judgements/read", json={"ids": []}), 422)
    assert_problem(client.get("/v1/judgements/nobody"), 404)
    assert_problem(client.get("/v1/judgements/..%2f..%2fx"), 404)
    assert_problem(client.delete("/v1/judgements"), 422)
    assert_problem(client.delete("/v1/judgements", params={"group": "../x"}), 422)
    assert_problem(client.get("/nowhere"), 404)
    assert_problem(client.put("/v1/judgements"), 405)
    assert depth(client) == 0
    assert client.post("/v1/judgements", json=submission(1)).status_code == 202


def test_graded_text_is_never_logged(processes: Any) -> None:
    client = processes.api("--log-level", "debug")
    processes.worker("--log-level", "debug")
    secret = "xyzzy-graded-text"
    item = {"prompt": f"{secret} prompt", "response": f"{secret} response"}
    body = {"items": [item], "rubric": "demo-v1", "wait_s": 20}
    assert client.post("/v1/judgements", json=body).status_code == 200
    client.post("/v1/judgements", json={**body, "priority": secret})
    # The verdict is out before the line is written.
    until(lambda: "judged a batch" in processes.logs(), "the worker's line about the batch")
    assert secret not in processes.logs()


def test_the_document_describes_what_is_sent(processes: Any) -> None:
    document = processes.api().get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    body = document["paths"]["/v1/judgements"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["$ref"].rpartition("/")[2] in schemas
    refs = {part.split('"')[0] for part in json.dumps(document).split('"#/components/schemas/')[1:]}
    assert refs <= schemas.keys()


def test_a_stop_answers_open_polls(processes: Any, submission: Submission) -> None:
    child = processes.start("api", "--port", "0")
    with httpx.Client(base_url=child.ready["url"], timeout=40) as client:
        client.post("/v1/judgements", json=submission(1))

        import threading

        answered: list[int] = []

        def poll() -> None:
            body = {"ids": ["item-0"], "wait_s": 30}
            answered.append(client.post("/v1/judgements/read", json=body).status_code)

        poller = threading.Thread(target=poll)
        poller.start()
        began = time.monotonic()
        status = child.stop(grace_s=20)
        poller.join(20)
    assert status == 0
    assert time.monotonic() - began < 15
    # Answered, or refused because it came after the stop had begun; never left hanging.
    assert not poller.is_alive()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["worker", "--backend", "transformers"], "needs --model"),
        (["worker", "--backend", "transformers", "--model", "/nowhere"], "there is no folder /nowhere"),
        (["worker", "--backend", "nonsense"], "unknown backend 'nonsense'"),
        (["worker", "--backend", "rules", "--rubric", "no-such"], "unknown rubric 'no-such'"),
        (["worker", "--backend", "rules", "--faulty", "fail=7"], "fail: "),
        (["worker", "--backend", "rules", "--batch-size", "0"], "batch_size: "),
        (["api", "--queue-limit", "0"], "queue.limit: "),
        (["api", "--log-level", "loud"], "unknown log level 'loud'"),
    ],
)
def test_a_wrong_setting_stops_the_start(redis_server: RunningRedis, args: list[str], message: str) -> None:
    with pytest.raises(ServiceError) as caught:
        start_module("judge_service.cli", args, env={"REDIS_URL": redis_server.url})
    assert "status 1" in str(caught.value)
    assert message in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_no_redis_is_named_without_its_password() -> None:
    with pytest.raises(ServiceError, match="set REDIS_URL"):
        start_module("judge_service.cli", ["api"], env={"REDIS_URL": ""})
    with pytest.raises(ServiceError) as caught:
        start_module("judge_service.cli", ["api"], env={"REDIS_URL": "http://:hidden@nowhere"})
    assert "redis_url" in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_port_that_is_taken_is_named(processes: Any) -> None:
    first = processes.start("api", "--port", "0")
    port = first.ready["url"].rpartition(":")[2]
    with pytest.raises(ServiceError, match=f"cannot listen on 127.0.0.1 port {port}"):
        processes.start("api", "--port", port)


def test_a_worker_waits_for_redis_only_so_long() -> None:
    with pytest.raises(ServiceError, match=r"Redis did not take create_groups for 0.2 s"):
        start_module(
            "judge_service.cli",
            ["worker", "--backend", "rules", "--redis-deadline-s", "0.2"],
            env={"REDIS_URL": "redis://127.0.0.1:1/0"},
        )


def test_without_redis_nothing_is_ready_and_nothing_is_a_500() -> None:
    child = start_module(
        "judge_service.cli", ["api", "--port", "0"], env={"REDIS_URL": "redis://:hidden@127.0.0.1:1/0"}
    )
    try:
        with httpx.Client(base_url=child.ready["url"], timeout=40) as client:
            ready = client.get("/readyz")
            assert ready.status_code == 503
            assert ready.json()["components"]["redis"]["status"] == "down"
            assert "hidden" not in ready.text
            body = {"items": [GOOD], "rubric": "demo-v1"}
            refused = client.post("/v1/judgements", json=body)
            assert_problem(refused, 503)
            assert refused.headers["retry-after"]
            assert client.get("/livez").status_code == 200
    finally:
        assert child.stop() == 0


def test_keys_stay_under_the_prefix(
    processes: Any, submission: Submission, redis_server: RunningRedis, redis_prefix: str
) -> None:
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as db:
        before = {key for key in db.scan_iter(count=1000) if not key.startswith(redis_prefix)}
        client = processes.api()
        processes.worker()
        client.post("/v1/judgements", json=submission(3, group="g", wait_s=20))
        after = {key for key in db.scan_iter(count=1000) if not key.startswith(redis_prefix)}
        assert after == before
        assert db.ttl(f"{redis_prefix}item:item-0") > 0
        assert not db.exists(f"{redis_prefix}group:g")


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """Without TCP_NODELAY every answer to a client that keeps its connection takes 40 ms."""
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
