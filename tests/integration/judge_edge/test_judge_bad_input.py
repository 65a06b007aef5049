"""Wrong requests, each answered by the 4xx that says what is wrong with it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import redis

pytestmark = pytest.mark.integration

Submission = Callable[..., dict[str, Any]]
Check = Callable[[httpx.Response, int], dict[str, Any]]

ITEM = {"prompt": "p", "response": "r"}


def raw(**fields: str) -> bytes:
    """A submission with these fields as they stand here, JSON or not."""
    written = {"items": json.dumps([ITEM]), "rubric": '"demo-v1"', **fields}
    return ("{" + ",".join(f'"{name}":{value}' for name, value in written.items()) + "}").encode()


BAD: list[tuple[str, bytes, str]] = [
    ("NaN", raw(wait_s="NaN"), "wait_s"),
    ("Infinity", raw(expires_at="Infinity"), "expires_at"),
    ("-Infinity", raw(expires_at="-Infinity"), "expires_at"),
    ("a number too large for a float", raw(expires_at="1e999"), "expires_at"),
    ("an integer of 5,000 digits", raw(expires_at="9" * 5000), "body"),
    ("a negative time", raw(expires_at="-1"), "expires_at"),
    ("a number in quotes", raw(wait_s='"5"'), "wait_s"),
    ("a truth as a number", raw(wait_s="true"), "wait_s"),
    ("a number as a truth", raw(rationale="1"), "rationale"),
    ("null", raw(rubric="null"), "rubric"),
    ("a rubric that is a path", raw(rubric='"../../etc/passwd"'), "rubric"),
    ("a rubric of a megabyte", raw(rubric=json.dumps("x" * 100_000)), "rubric"),
    ("257 items", raw(items=json.dumps([ITEM] * 257)), "items"),
    ("the same id twice", raw(items=json.dumps([{**ITEM, "id": "a"}] * 2)), "body"),
    ("an id of 201 characters", raw(items=json.dumps([{**ITEM, "id": "a" * 201}])), "items[0].id"),
    ("an id with a slash", raw(items=json.dumps([{**ITEM, "id": "acme/a"}])), "items[0].id"),
    ("an id with a line break", raw(items=json.dumps([{**ITEM, "id": "a\n"}])), "items[0].id"),
    ("an id with a NUL", raw(items=json.dumps([{**ITEM, "id": "a\0"}])), "items[0].id"),
    ("a group with a blank", raw(group='"a b"'), "group"),
    ("half a surrogate pair", raw(items='[{"prompt":"\\udc00","response":""}]'), "body"),
    ("deep in an item", raw(items='[{"prompt":' + "[" * 20_000), "body"),
    ("deep and closed", raw(items="[" * 20_000 + "]" * 20_000), "body"),
    ("a byte order mark", b"\xef\xbb\xbf" + raw(), "body"),
    ("UTF-16", raw().decode().encode("utf-16"), "body"),
    ("more behind it", raw() + b"x", "body"),
    ("a comment", raw() + b"// x", "body"),
    ("single quotes", b"{'items': []}", "body"),
]


def test_each_wrong_body_is_named(open_api: httpx.Client, problem: Check) -> None:
    for name, body, field in BAD:
        said = problem(open_api.post("/v1/judgements", content=body), 422)
        fields = [error["field"] for error in said["errors"]]
        assert any(found.startswith(field) for found in fields), (name, said)


def test_what_json_allows_is_taken(open_api: httpx.Client) -> None:
    strange = "\0\u2028\ufeff\U0001f600 <|im_end|>\x7f\x1b[31m" + "a\u0301" * 1000
    body = {"items": [{"prompt": strange, "response": strange}], "rubric": "demo-v1", "wait_s": 20}
    answer = open_api.post("/v1/judgements", json=body)
    assert answer.status_code == 200
    assert answer.json()["items"][0]["status"] == "scored"


def test_a_body_that_is_too_large_or_encoded_is_refused(open_api: httpx.Client, problem: Check) -> None:
    for path in (
        "/v1/judgements",
        "/v1/judgements/read",
        "/v1/judgements/events",
        "/get_reward",
        "/v1/moderations",
    ):
        problem(open_api.post(path, content=b" " * 200_001), 413)
        encoded = open_api.post(path, content=b"x", headers={"Content-Encoding": "gzip"})
        assert "gzip" in problem(encoded, 415)["detail"]


def test_an_id_whose_time_is_up_is_gone(
    edge: Any, open_api: httpx.Client, submission: Submission, problem: Check
) -> None:
    body = submission(1, wait_s=20)
    key = body["items"][0]["id"]
    assert open_api.post("/v1/judgements", json=body).status_code == 200
    with redis.Redis.from_url(edge.redis_url) as db:
        # A day later.
        db.hset(f"{edge.prefix}item:{key}", "until", str(time.time() - 1))
    assert "submit it again" in problem(open_api.get(f"/v1/judgements/{key}"), 410)["detail"]
    problem(open_api.post("/v1/judgements/read", json={"ids": [key]}), 410)
    problem(open_api.get("/v1/judgements/events", params={"ids": key}), 410)
    # And so it can be.
    assert open_api.post("/v1/judgements", json=body).status_code == 200


def test_wrong_paths_and_methods_are_named(open_api: httpx.Client, problem: Check) -> None:
    for path in (
        "/",
        "/v1",
        "/v1/judgements/",
        "/v1/judgements/a/b",
        "/v1/judgements/%2e%2e",
        "/V1/judgements",
    ):
        problem(open_api.get(path), 404)
    problem(open_api.get("/v1/judgements/" + "x" * 5000), 404)
    for method, path, allowed in [
        ("GET", "/v1/judgements", "DELETE, POST"),
        ("PUT", "/v1/judgements/read", "POST"),
        ("DELETE", "/v1/judgements/events", "GET, POST"),
        ("PATCH", "/v1/judgements/some-id", "GET"),
        ("TRACE", "/readyz", "GET"),
    ]:
        answer = open_api.request(method, path)
        problem(answer, 405)
        assert answer.headers["allow"] == allowed


def exchange(url: str, request: bytes) -> bytes:
    """The answer's head to bytes that no HTTP client would send."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        return connection.recv(65536)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nBad header\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nA: \x01\x02\r\n\r\n", 400),
        (b"POST /v1/judgements HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n", 400),
        (b"POST /v1/judgements HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v1/judgements HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (
            b"POST /v1/judgements HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Type: \xff\r\n\r\n{}",
            422,
        ),
        (b"GET /v1/judgements/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /v1/judgements/%ff HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (
            b"GET /v1/judgements/a HTTP/1.1\r\nHost: x\r\nAuthorization: \xff\r\nLast-Event-ID: \xff\r\n\r\n",
            404,
        ),
    ],
    ids=lambda value: None,
)
def test_header_junk_is_refused(edge: Any, request_bytes: bytes, status: int) -> None:
    answer = exchange(edge.url("open"), request_bytes)
    assert answer.split(b" ", 2)[1] == str(status).encode(), answer[:300]


def test_after_all_that_it_still_serves(open_api: httpx.Client, submission: Submission) -> None:
    assert open_api.post("/v1/judgements", json=submission(1, wait_s=20)).status_code == 200
