"""Idempotency-Key on a submission."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import redis

pytestmark = pytest.mark.integration

Submission = Callable[..., dict[str, Any]]
Check = Callable[[httpx.Response, int], dict[str, Any]]


def anonymous(body: dict[str, Any]) -> dict[str, Any]:
    """Items without ids: the service makes them."""
    return {**body, "items": [{k: v for k, v in item.items() if k != "id"} for item in body["items"]]}


def test_the_same_key_and_body_is_the_same_submission(
    open_api: httpx.Client, submission: Submission, name: str, problem: Check
) -> None:
    body, headers = anonymous(submission(3, wait_s=20)), {"Idempotency-Key": f'"{name}"'}
    first = open_api.post("/v1/judgements", json=body, headers=headers)
    again = open_api.post("/v1/judgements", json=body, headers=headers)
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    # Without the key it is another one.
    other = open_api.post("/v1/judgements", json=body)
    assert {v["id"] for v in other.json()["items"]}.isdisjoint({v["id"] for v in first.json()["items"]})
    changed = {**body, "priority": "policy"}
    assert "another body" in problem(
        open_api.post("/v1/judgements", json=changed, headers=headers), 422
    )["detail"]  # fmt: skip


def test_at_once_or_one_after_the_other_it_is_judged_once(
    edge: Any, submission: Submission, name: str
) -> None:
    body, headers = anonymous(submission(2, wait_s=20)), {"Idempotency-Key": name}

    def send(_: int) -> httpx.Response:
        with edge.client() as client:
            return client.post("/v1/judgements", json=body, headers=headers)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(8)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    done = [answer.json() for answer in answers if answer.status_code == 200]
    assert done
    assert all(answer == done[0] for answer in done)
    for answer in answers:
        if answer.status_code == 409:
            assert answer.headers["retry-after"] == "1"


def test_a_process_that_died_while_it_admitted_leaves_nothing_judged_twice(
    edge: Any, open_api: httpx.Client, submission: Submission, name: str, problem: Check
) -> None:
    body, headers = anonymous(submission(2, wait_s=20)), {"Idempotency-Key": name}
    first = open_api.post("/v1/judgements", json=body, headers=headers).json()
    key = f"{edge.prefix}once:{name}"
    with redis.Redis.from_url(edge.redis_url) as db:
        note = json.loads(db.get(key))  # type: ignore[arg-type]
        assert 0 < db.ttl(key) <= 86_400
        db.set(key, json.dumps({**note, "ids": None}))
        problem(open_api.post("/v1/judgements", json=body, headers=headers), 409)
        # Its note's time is up.
        db.delete(key)
    assert open_api.post("/v1/judgements", json=body, headers=headers).json() == first


def test_what_was_not_admitted_may_be_tried_again(
    open_api: httpx.Client, submission: Submission, name: str, problem: Check
) -> None:
    open_api.post("/v1/judgements", json=submission(1))
    conflicting = submission(1)
    conflicting["items"][0]["response"] = "other"
    headers = {"Idempotency-Key": name}
    for _ in range(2):
        problem(open_api.post("/v1/judgements", json=conflicting, headers=headers), 409)
    problem(open_api.post("/v1/judgements", json=submission(1), headers={"Idempotency-Key": '""'}), 400)


def test_keys_of_tenants_are_their_own(edge: Any, submission: Submission, name: str) -> None:
    body, headers = anonymous(submission(1)), {"Idempotency-Key": name}
    ids = set()
    for tenant in ("acme", "beta"):
        with edge.client("keyed", tenant=tenant) as client:
            answer = client.post("/v1/judgements", json=body, headers=headers)
            assert "idempotency-replayed" not in answer.headers
            ids.add(answer.json()["items"][0]["id"])
    assert len(ids) == 2
