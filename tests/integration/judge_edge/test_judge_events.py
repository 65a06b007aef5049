"""Verdicts as server-sent events, read by a client that is not ours."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, connect_sse

pytestmark = pytest.mark.integration

Submission = Callable[..., dict[str, Any]]
Check = Callable[[httpx.Response, int], dict[str, Any]]


def read(
    client: httpx.Client, *, last: str | None = None, most: int | None = None, **params: Any
) -> list[ServerSentEvent]:
    """Events until the stream ends, or the first `most`."""
    headers = {"Last-Event-ID": last} if last else {}
    with connect_sse(client, "GET", "/v1/judgements/events", params=params, headers=headers) as source:
        events = []
        for event in source.iter_sse():
            events.append(event)
            if len(events) == most:
                break
        return events


def ids_of(body: dict[str, Any]) -> list[str]:
    return [item["id"] for item in body["items"]]


def streams_open(client: httpx.Client) -> float:
    [line] = [
        one for one in client.get("/metrics").text.splitlines() if one.startswith("judge_event_streams ")
    ]
    return float(line.split()[1])


def test_each_verdict_comes_once_and_then_the_end(open_api: httpx.Client, submission: Submission) -> None:
    body = submission(60)
    ids = ids_of(body)
    assert open_api.post("/v1/judgements", json=body).is_success

    events = read(open_api, ids=",".join(ids))

    assert [event.event for event in events] == ["verdict"] * 60 + ["done"]
    verdicts = [event.json() for event in events[:-1]]
    assert sorted(one["id"] for one in verdicts) == sorted(ids)
    assert {one["status"] for one in verdicts} == {"scored"}
    assert verdicts[0] == open_api.get(f"/v1/judgements/{verdicts[0]['id']}").json()
    assert events[-1].json() == {"items": 60}
    assert events[0].retry == 1000


def test_a_client_that_comes_back_gets_the_rest(
    edge: Any, open_api: httpx.Client, submission: Submission
) -> None:
    body = submission(5, wait_s=20)
    ids = ids_of(body)
    open_api.post("/v1/judgements", json=body)
    first = read(open_api, ids=ids, most=2)
    rest = read(open_api, ids=ids, last=first[-1].id)
    assert [event.event for event in rest] == ["verdict"] * 3 + ["done"]
    assert sorted(event.json()["id"] for event in [*first, *rest[:-1]]) == ids
    # An EventSource comes back after the end too: 204 tells it to stay away.
    again = open_api.get("/v1/judgements/events", params={"ids": ids}, headers={"Last-Event-ID": rest[-1].id})
    assert again.status_code == 204
    # Without the id it is all sent again: nothing can be lost.
    assert len(read(open_api, ids=ids)) == 6


def test_verdicts_come_while_the_stream_is_open(edge: Any, submission: Submission) -> None:
    """Also from a worker that begins later, with signs of life before; ids in a body."""
    env = {"TETHER_JUDGE_KEY_PREFIX": f"{edge.prefix}events:"}
    api = edge.start("events", "api", "--port", "0", "--events-keep-alive-s", "0.2", env=env)
    worker = None
    try:
        with httpx.Client(base_url=api.ready["url"], timeout=40) as client:
            body = submission(40)
            assert client.post("/v1/judgements", json=body).status_code == 202
            seen: list[str] = []
            with client.stream("POST", "/v1/judgements/events", json={"ids": ids_of(body)}) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                assert answer.headers["cache-control"] == "no-store"
                for line in answer.iter_lines():
                    seen.append(line)
                    if line == ": keep-alive" and worker is None:
                        worker = edge.start("events-worker", "worker", "--backend", "rules", env=env)
            assert worker is not None
            assert sum(line == "event: verdict" for line in seen) == 40
            assert seen.index(": keep-alive") < seen.index("event: verdict")
            assert json.loads(seen[-2].removeprefix("data: ")) == {"items": 40}
    finally:
        api.stop()
        if worker is not None:
            worker.stop()


def test_a_group_is_streamed_and_goes_on_where_it_was(edge: Any, submission: Submission) -> None:
    """On an API of its own, stopped in between; tenants' groups of one name stay apart."""
    env = {"TETHER_JUDGE_KEY_PREFIX": f"{edge.prefix}group:"}
    keyed = ("api", "--port", "0", "--keys-file", str(edge.keys_file))
    api = edge.start("group", *keyed, env=env)
    started = [api]
    try:
        edge.children["group"] = api
        with edge.client("group", tenant="acme") as acme, edge.client("group", tenant="beta") as beta:
            mine, theirs = submission(3, group="g"), submission(1, group="g")
            assert acme.post("/v1/judgements", json=mine).status_code == 202
            assert beta.post("/v1/judgements", json=theirs).status_code == 202
            got: list[ServerSentEvent] = []
            opened = threading.Event()

            def follow() -> None:
                with connect_sse(acme, "GET", "/v1/judgements/events", params={"group": "g"}) as source:
                    opened.set()
                    got.extend(source.iter_sse())

            reader = threading.Thread(target=follow)
            reader.start()
            assert opened.wait(20)
            started.append(edge.start("group-worker", "worker", "--backend", "rules", env=env))
            reader.join(20)
            assert not reader.is_alive()
        assert [event.event for event in got] == ["verdict"] * 3 + ["done"]
        assert sorted(event.json()["id"] for event in got[:-1]) == ids_of(mine)
        assert api.stop() == 0
        # Another process goes on with it.
        edge.children["group"] = edge.start("group-2", *keyed, env=env)
        started.append(edge.children["group"])
        with edge.client("group", tenant="acme") as acme, edge.client("group", tenant="beta") as beta:
            rest = read(acme, group="g", last=got[0].id)
            assert [event.event for event in rest] == ["verdict"] * 2 + ["done"]
            params, headers = {"group": "g"}, {"Last-Event-ID": got[0].id}
            assert beta.get("/v1/judgements/events", params=params, headers=headers).status_code == 400
            # All are done, so a new stream of the group has nothing to say.
            assert [event.event for event in read(acme, group="g")] == ["done"]
    finally:
        for child in started:
            child.stop()


def test_who_leaves_is_not_waited_for_and_a_stop_ends_streams(edge: Any, submission: Submission) -> None:
    env = {"TETHER_JUDGE_KEY_PREFIX": f"{edge.prefix}leave:"}
    api = edge.start("leave", "api", "--port", "0", env=env)
    try:
        with httpx.Client(base_url=api.ready["url"], timeout=40) as client:
            body = submission(1)
            client.post("/v1/judgements", json=body)
            with connect_sse(client, "GET", "/v1/judgements/events", params={"ids": ids_of(body)}) as source:
                assert source.response.status_code == 200
                assert streams_open(client) == 1
            deadline = time.monotonic() + 10
            while streams_open(client) != 0:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            with connect_sse(client, "GET", "/v1/judgements/events", params={"ids": ids_of(body)}) as source:
                lines = source.response.iter_lines()
                assert next(lines) == ": open"
                began = time.monotonic()
                assert api.stop() == 0
                assert list(lines) == [""]
                assert time.monotonic() - began < 8
    finally:
        api.stop()


def test_what_cannot_be_streamed_is_a_problem(
    open_api: httpx.Client, submission: Submission, problem: Check
) -> None:
    events = "/v1/judgements/events"
    problem(open_api.get(events), 422)
    problem(open_api.get(events, params={"ids": "a", "group": "g"}), 422)
    problem(open_api.get(events, params={"group": "../x"}), 422)
    unknown = problem(open_api.get(events, params={"ids": "nobody,no-one"}), 404)
    assert [error["field"] for error in unknown["errors"]] == ["ids[0]", "ids[1]"]
    body = submission(1, wait_s=20)
    open_api.post("/v1/judgements", json=body)
    for wrong in ("x", ".AAAA", ".?"):
        answer = open_api.get(events, params={"ids": ids_of(body)}, headers={"Last-Event-ID": wrong})
        problem(answer, 400)
    problem(open_api.get(events, params={"group": "g"}, headers={"Last-Event-ID": "abc.AA"}), 400)
    problem(open_api.post(events, json={"ids": []}), 422)
    problem(open_api.post(events, json={"ids": ["a"] * 4097}), 422)
