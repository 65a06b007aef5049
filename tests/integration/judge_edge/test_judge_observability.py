"""What an operator sees: metrics, traces, logs, readiness. None of it holds graded text."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from shared.processes import Child

pytestmark = pytest.mark.integration

MARKER = "xyzzy-graded-text"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@dataclass
class Collector:
    """Receives OTLP over HTTP as a collector does: gzip or plain protobuf."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    spans: list[tuple[str, Span]] = field(default_factory=list)
    """(service, span)."""

    def take(self, path: str, body: bytes) -> bytes:
        assert path == "/v1/traces"
        request = ExportTraceServiceRequest.FromString(body)
        self.bodies.append(body)
        for part in request.resource_spans:
            names = {one.key: one.value.string_value for one in part.resource.attributes}
            for scope in part.scope_spans:
                self.spans += [(names["service.name"], span) for span in scope.spans]
        return ExportTraceServiceResponse().SerializeToString()

    def named(self, name: str, seconds: float = 20) -> tuple[str, Span]:
        """The span of that name, when it has come."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for service, span in self.spans:
                if span.name == name:
                    return service, span
            time.sleep(0.02)
        raise AssertionError(f"no span {name!r} among {[span.name for _, span in self.spans]}")


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            answer = made.take(self.path, body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Watched:
    """An API and a worker of this file's own, everything switched on."""

    client: httpx.Client
    worker: Child
    away: Any
    """While this file is there, the backend is away."""


@pytest.fixture(scope="module")
def watched(edge: Any, collector: Collector) -> Iterator[Watched]:
    env = {
        "TETHER_JUDGE_KEY_PREFIX": f"{edge.prefix}watched:",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    away = edge.directory / "away"
    api = edge.start("watched", "api", "--port", "0", "--log-level", "debug", "--queue-limit", "50", env=env)
    worker = None
    try:
        worker = edge.start(
            "watched-worker", "worker", "--backend", "rules", "--log-level", "debug", "--metrics-port", "0",
            "--faulty", f"away=true,only_while={away}", env=env,
        )  # fmt: skip
        with httpx.Client(base_url=api.ready["url"], timeout=40) as client:
            yield Watched(client, worker, away)
    finally:
        assert api.stop() == 0
        if worker is not None:
            assert worker.stop() == 0


def samples(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Name of a sample -> its labels' values -> its value."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def body(count: int, **fields: Any) -> dict[str, Any]:
    items = [{"prompt": f"How to hack {MARKER} {n}?", "response": f"{MARKER} {n}"} for n in range(count)]
    return {"items": items, "rubric": "demo-v1", **fields}


def test_a_trace_leads_from_the_request_through_the_queue_to_the_backend(
    watched: Watched, collector: Collector
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    answer = watched.client.post("/v1/judgements", json=body(3, wait_s=20), headers=headers)
    assert answer.status_code == 200

    names = ["POST /v1/judgements", "send judgements", "process judgements", "judge batch"]
    found = {name: collector.named(name) for name in names}
    server, send, process, judge = (found[name][1] for name in names)

    assert [service for service, _ in found.values()] == ["tether-judge-api"] * 2 + [
        "tether-judge-worker"
    ] * 2
    assert {span.trace_id.hex() for _, span in found.values()} == {TRACE}
    assert server.parent_span_id.hex() == PARENT
    assert send.parent_span_id == server.span_id
    assert process.parent_span_id == send.span_id
    assert judge.parent_span_id == process.span_id
    assert [link.span_id for link in process.links] == [send.span_id]
    kinds = [Span.SPAN_KIND_SERVER, Span.SPAN_KIND_PRODUCER, Span.SPAN_KIND_CONSUMER, Span.SPAN_KIND_CLIENT]
    assert [span.kind for _, span in found.values()] == kinds
    attributes = {one.key: one.value for one in server.attributes}
    assert attributes["http.response.status_code"].int_value == 200
    sizes = {one.key: one.value for one in send.attributes}
    assert sizes["messaging.batch.message_count"].int_value == 3
    assert collector.bodies
    assert not any(MARKER.encode() in raw for raw in collector.bodies)


def test_metrics_of_the_api_and_of_the_worker_say_what_was_done(watched: Watched) -> None:
    client = watched.client
    before = samples(client.get("/metrics").text)
    assert client.post("/v1/judgements", json=body(4, wait_s=20)).status_code == 200
    assert client.post("/v1/judgements", json={}).status_code == 422
    assert client.get("/nowhere/at/all").status_code == 404
    after = samples(client.get("/metrics").text)

    def grew(name: str, *labels: str) -> float:
        return after[name][labels] - before.get(name, {}).get(labels, 0.0)

    assert grew("judge_requests_total", "200", "/v1/judgements") == 1
    assert grew("judge_requests_total", "422", "/v1/judgements") == 1
    assert grew("judge_requests_total", "404", "(none)") == 1
    assert grew("judge_items_submitted_total", "target") == 4
    assert grew("judge_request_seconds_count", "/v1/judgements") == 2
    assert after["judge_queue_limit"][()] == 50
    assert after["judge_redis_up"][()] == 1
    assert after["judge_workers"][()] == 1
    for name in ("judge_queue_depth", "judge_queue_oldest_age_seconds", "judge_inflight"):
        assert after[name] == {("evaluation",): 0, ("policy",): 0, ("target",): 0}
    assert after["judge_dead_letters"][()] == 0
    name = watched.worker.ready["worker"]
    # A worker says how it stands with each heartbeat; its first was before its judge was tried.
    until = time.monotonic() + 20
    while samples(client.get("/metrics").text)["judge_backend_up"] != {(name,): 1}:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert samples(client.get("/metrics").text)["judge_breaker_open"] == {("", "closed", name): 0}
    assert after["judge_redis_memory_bytes"][()] > 0
    assert after["judge_redis_memory_limit_bytes"][()] == 0
    assert after["judge_redis_durable"][()] == 1

    worker = samples(httpx.get(watched.worker.ready["metrics"]).text)
    scored = worker["judge_verdicts_total"][("scored",)]
    assert scored >= 4
    assert worker["judge_job_seconds_count"][()] == scored
    assert worker["judge_score_count"][("demo-v1",)] == scored
    assert worker["judge_batch_seconds_count"][()] >= 1
    assert worker["judge_batches_at_once"][()] >= 1
    assert worker["judge_backend_up"][()] == 1
    for counter in ("judge_redeliveries_total", "judge_dead_letters_total", "judge_cached_total"):
        assert worker[counter][()] == 0


def test_a_backend_that_is_away_is_reported_and_not_fatal_while_there_is_room(watched: Watched) -> None:
    client, name = watched.client, watched.worker.ready["worker"]
    watched.away.touch()
    try:
        # It takes this, finds its backend away, and gives it back.
        assert client.post("/v1/judgements", json=body(1)).status_code == 202
        until = time.monotonic() + 20
        while (ready := client.get("/readyz").json())["components"]["workers"]["not_taking"] != [name]:
            assert time.monotonic() < until, ready
            time.sleep(0.05)
        assert ready["status"] == "ready"
        seen = samples(client.get("/metrics").text)
        assert seen["judge_backend_up"] == {(name,): 0}
        [(reason, _, worker)] = [labels for labels, value in seen["judge_breaker_open"].items() if value]
        assert (reason, worker) == ("backend_unavailable", name)
        assert sum(seen["judge_queue_depth"].values()) == 1
        assert max(seen["judge_queue_oldest_age_seconds"].values()) > 0
        worker = samples(httpx.get(watched.worker.ready["metrics"]).text)
        assert worker["judge_backend_up"][()] == 0

        assert client.post("/v1/judgements", json=body(49)).status_code == 202
        full = client.get("/readyz")
        assert full.status_code == 503
        assert full.json()["components"]["queue"]["status"] == "full"
        assert full.headers["retry-after"]
        refused = client.post("/v1/judgements", json=body(1))
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
    finally:
        watched.away.unlink()
    until = time.monotonic() + 30
    while client.get("/readyz").json()["components"]["queue"]["depth"]["target"]:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_graded_text_reaches_no_log_whatever_goes_wrong(edge: Any, watched: Watched) -> None:
    client = watched.client
    good = {"id": "logged", "prompt": f"{MARKER} prompt", "response": f"{MARKER} response"}
    whole = {"items": [good], "rubric": "demo-v1", "wait_s": 20}
    seen = []

    def send(path: str = "/v1/judgements", **request: Any) -> None:
        seen.append(client.post(path, **request).status_code)

    send(json=whole)
    send(json={**whole, "items": [{**good, "response": f"{MARKER} other"}]})
    send(json={**whole, "rubric": "no-such"})
    send(json={**whole, "items": [{**good, "response": [MARKER]}]})
    send(json={**whole, "items": [{**good, "prompt": [{"role": MARKER, "content": MARKER}]}]})
    send(json={**whole, MARKER: MARKER})
    send(content=json.dumps(whole)[:-5])
    send(content=MARKER.encode() + b"\xff")
    send(json={**whole, "items": [{"prompt": MARKER, "response": MARKER * 300_000}]})
    send(json=whole, headers={"Content-Encoding": "gzip"})
    for text in (MARKER, f"{MARKER} again"):
        send(json={**whole, "group": "g", "items": [{"prompt": text, "response": text}]},
             headers={"Idempotency-Key": "logged"})  # fmt: skip
    send("/get_reward", json={"query": [MARKER], "prompts": [f"{MARKER} of another"]})
    send("/get_reward", json={"query": [MARKER], "prompts": [MARKER]})
    send("/v1/moderations", json={"input": [MARKER, {"type": "text", "text": MARKER}]})
    send("/v1/moderations", json={"input": MARKER, "model": "omni-moderation-latest"})
    send("/v1/judgements/read", json={"ids": [MARKER]})
    assert seen == [200, 409, 422, 422, 422, 422, 422, 422, 413, 415, 200, 422, 422, 200, 422, 200, 404]
    assert client.get("/v1/judgements/events", params={"ids": "logged"}).status_code == 200

    logs = edge.log("watched") + edge.log("watched-worker")
    assert '"route": "/v1/judgements", "code": 409' in logs
    assert "judged a batch" in logs
    assert "the breaker is open" in logs
    assert MARKER not in logs
    assert all(json.loads(line) for line in logs.splitlines())


CRASHING = """
import os
from judge_service.backends.rules import RulesBackend
from judge_service.config import QueueConfig, RulesConfig, WorkerConfig
from judge_service.worker.process import work
from shared.logs import configure_logs

class Broken(RulesBackend):
    async def judge(self, batch):
        raise ValueError(batch[0].prompt)

configure_logs("judge-worker")
queue = QueueConfig(redis_url=os.environ["REDIS_URL"], key_prefix=os.environ["TETHER_JUDGE_KEY_PREFIX"])
work(WorkerConfig(queue=queue, backend=RulesConfig(), controls=False), Broken())
"""


def test_a_fault_of_ours_ends_a_worker_without_showing_the_text(
    edge: Any, submission: Callable[..., Any]
) -> None:
    """The exception's message is the graded text, as a library's might be."""
    prefix = f"{edge.prefix}crash:"
    api = edge.start("crash", "api", "--port", "0", env={"TETHER_JUDGE_KEY_PREFIX": prefix})
    try:
        item = {"prompt": MARKER, "response": MARKER}
        answer = httpx.post(f"{api.ready['url']}/v1/judgements", json={"items": [item], "rubric": "demo-v1"})
        assert answer.status_code == 202
        done = subprocess.run(
            [sys.executable, "-c", CRASHING], capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, **edge.env, "TETHER_JUDGE_KEY_PREFIX": prefix},
        )  # fmt: skip
    finally:
        api.stop()
    assert done.returncode != 0
    last = json.loads(done.stderr.splitlines()[-1])
    assert last["message"] == "ended by a fault"
    assert "ValueError" in last["exception"]
    assert MARKER not in done.stdout + done.stderr
