from __future__ import annotations

import asyncio
import json
import logging

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge_service import telemetry
from judge_service.api import health
from judge_service.api.app import create_app
from judge_service.api.events import checked, delivered_of, event_id
from judge_service.api.metrics import ApiMetrics, breaker_state
from judge_service.api.once import header_key, made_id
from judge_service.api.problem import ApiProblem
from judge_service.compat.moderations import CreateModeration, result_of, texts_of
from judge_service.compat.openrlhf import response_in
from judge_service.config import ApiConfig, QueueConfig
from judge_service.queue.streams import Admission, JudgementQueue, connect
from judge_service.state import RedisHealth, ServiceState
from judge_service.telemetry import wanted
from shared.errors import ConfigError, ServiceError
from shared.logs import JsonFormatter
from shared.redis_keys import JudgeKeys
from shared.wire import JudgeInfo, ScoredVerdict, ScoreKind, Timings


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_an_event_id_says_what_was_delivered(case: tuple[int, set[int]]) -> None:
    total, delivered = case
    token, _, bits = event_id("abc", delivered, total).partition(".")
    assert token == "abc"
    assert delivered_of(bits, total) == delivered


@pytest.mark.parametrize("bits", ["", "????", "AAAAAAAA", "A", "ÿ"])
def test_an_event_id_of_another_stream_is_refused(bits: str) -> None:
    with pytest.raises(ApiProblem) as caught:
        delivered_of(bits, 8)
    assert caught.value.status == 400


@pytest.mark.parametrize(("ids", "group"), [((), None), (("a",), "g"), ((), "../x")])
def test_a_stream_is_of_ids_or_of_a_group(ids: tuple[str, ...], group: str | None) -> None:
    with pytest.raises(ApiProblem) as caught:
        checked(ids, group)
    assert caught.value.status == 422


@pytest.mark.parametrize(("header", "key"), [(None, None), ("abc", "abc"), ('"a b"', "a b"), (' "x" ', "x")])
def test_an_idempotency_key_with_quotes_or_without(header: str | None, key: str | None) -> None:
    assert header_key(header) == key


@pytest.mark.parametrize("header", ["", '""', "é", "a\tb", "x" * 256])
def test_a_wrong_idempotency_key_is_a_400(header: str) -> None:
    with pytest.raises(ApiProblem) as caught:
        header_key(header)
    assert caught.value.status == 400


def test_ids_follow_from_the_key() -> None:
    made = [made_id("acme/k", 0), made_id("acme/k", 1), made_id("beta/k", 0)]
    assert len(set(made)) == 3
    assert made[0] == made_id("acme/k", 0)


PROMPT = "<|user|>How do I bake a cake with three layers?<|assistant|>"


@pytest.mark.parametrize(
    ("query", "prompt", "response"),
    [
        (PROMPT + "Mix flour.", PROMPT, "Mix flour."),
        (PROMPT + "Mix flour.</s>", PROMPT, "Mix flour."),
        (PROMPT + "Mix flour.<|im_end|>\n<|endoftext|>", PROMPT, "Mix flour."),
        ("<s>" + PROMPT + "Mix flour.", PROMPT, "Mix flour."),
        # Cut on its left to fit the context.
        (PROMPT[8:] + "Mix flour.", PROMPT, "Mix flour."),
        # The answer repeats the prompt: only the first is the prompt.
        (PROMPT + PROMPT, PROMPT, PROMPT.removesuffix("<|assistant|>")),
        ("All of it.", "", "All of it."),
        (PROMPT, PROMPT, ""),
    ],
)
def test_the_answer_in_openrlhfs_text(query: str, prompt: str, response: str) -> None:
    assert response_in(query, prompt, "query[0]") == response


@pytest.mark.parametrize("query", ["", "quite another text, as long as you like", "cake"])
def test_a_query_that_does_not_follow_its_prompt_is_refused(query: str) -> None:
    with pytest.raises(ApiProblem) as caught:
        response_in(query, PROMPT, "query[3]")
    assert caught.value.status == 422
    assert [field for field, _ in caught.value.errors] == ["query[3]"]
    assert PROMPT not in caught.value.detail


def test_one_text_an_input_and_parts_are_one() -> None:
    assert texts_of(CreateModeration(input="a")) == ["a"]
    assert texts_of(CreateModeration(input=["a", ""])) == ["a", ""]
    parts = CreateModeration.model_validate(
        {"input": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    )
    assert texts_of(parts) == ["a\nb"]


def test_only_scored_categories_are_given() -> None:
    verdict = ScoredVerdict(
        id="a",
        score=0.3,
        categories={"violence": 0.7, "hate": 0.1},
        judge=JudgeInfo(kind="k", model="m", rubric="r", rubric_hash="h", score_kind=ScoreKind.CLASSIFIER),
        timings=Timings(queue_ms=0, judge_ms=0),
    )
    result = result_of(verdict, 0.5)
    assert result.category_scores == {"violence": 0.7, "hate": 0.1, "harm": 0.3}
    assert result.categories == {"violence": True, "hate": False, "harm": False}
    assert result.flagged
    assert not result_of(verdict, 0.71).flagged
    assert result_of(verdict, 0.7).flagged


@pytest.mark.parametrize(
    ("environ", "on"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_traces_are_off_unless_asked_for(environ: dict[str, str], on: bool) -> None:
    assert wanted(environ) is on


def test_a_protocol_that_we_do_not_speak_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigError, match="http/protobuf"):
        telemetry.configure("service")


def test_traces_that_are_off_cost_nothing_and_say_nothing() -> None:
    with telemetry.span("x", telemetry.Kind.CLIENT, traceparents=["00-1-2-01"]) as span:
        span.set({"a": 1})
        span.fail("b")
        assert telemetry.traceparent() is None
        assert telemetry.headers() == {}
    assert not telemetry.enabled()


def logged(error: BaseException) -> str:
    record = logging.LogRecord("a", logging.ERROR, __file__, 1, "it broke", (), None)
    record.exc_info = (type(error), error, error.__traceback__)
    return str(json.loads(JsonFormatter("s").format(record))["exception"])


def test_an_exception_is_logged_without_its_words() -> None:
    """A library's message repeats the value that it did not like: the graded text, perhaps."""
    text = " ".join(["graded", "text"])  # The traceback shows this line, and not what it makes.
    try:
        try:
            int(text)
        except ValueError as cause:
            raise ExceptionGroup(text, [KeyError(text)]) from cause
    except ExceptionGroup as group:
        said = logged(group)
    assert text not in said
    for part in ("ValueError", "KeyError", "which came of", "test_judge_edge_parts.py"):
        assert part in said


def test_our_own_errors_keep_their_words() -> None:
    assert "Redis is away" in logged(ServiceError("Redis is away"))


def test_what_a_worker_says_of_its_breaker() -> None:
    assert breaker_state({}) == "closed"
    assert breaker_state({"breaker": "open"}) == "open"
    assert breaker_state({"breaker": {"state": "half_open"}}) == "half_open"


def test_without_redis_the_rest_is_still_told() -> None:
    metrics = ApiMetrics()
    metrics.answered("/v1/judgements", 200, 0.1)
    text = metrics.render(None).decode()
    assert "judge_redis_up 0.0" in text
    assert 'judge_requests_total{code="200",route="/v1/judgements"} 1.0' in text
    assert "judge_queue_depth" not in text


def test_a_redis_that_says_nothing_holds_up_no_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: object) -> ServiceState:
        await asyncio.Event().wait()
        raise AssertionError("it never ends")

    monkeypatch.setattr(health, "read_state", silent)
    monkeypatch.setattr(health, "METRICS_REDIS_S", 0.01)
    queue = JudgementQueue(connect("redis://127.0.0.1:1"), JudgeKeys())
    app = create_app(ApiConfig(queue=QueueConfig(redis_url="redis://127.0.0.1:1")), queue)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://judge") as client:
            return await client.get("/metrics")

    answer = asyncio.run(ask())
    assert answer.status_code == 200
    assert "judge_redis_up 0.0" in answer.text


def test_why_a_breaker_is_open_and_what_redis_has_left_are_told() -> None:
    worker = {"worker": "w", "breaker": {"state": "open", "reason": "judge_untrusted", "since": 1.0}}
    state = ServiceState(streams={}, limit=5, dead_letters=0, workers=(worker,))
    text = ApiMetrics().render(state, RedisHealth(7, 9, durable=False)).decode()
    assert 'judge_breaker_open{reason="judge_untrusted",state="open",worker="w"} 1.0' in text
    for line in ("memory_bytes 7.0", "memory_limit_bytes 9.0", "durable 0.0"):
        assert f"judge_redis_{line}" in text


def test_a_bug_of_ours_is_a_500_that_shows_no_text() -> None:
    """In the process, since no request makes one."""
    text = " ".join(["graded", "text"])

    class Broken(JudgementQueue):
        async def submit(self, *_: object, **__: object) -> Admission:
            raise ValueError(text)

    queue = Broken(connect("redis://127.0.0.1:1"), JudgeKeys())
    app = create_app(ApiConfig(queue=QueueConfig(redis_url="redis://127.0.0.1:1")), queue)
    body = {"items": [{"prompt": text, "response": text}], "rubric": "demo-v1"}

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://judge") as client:
            return await client.post("/v1/judgements", json=body)

    answer = asyncio.run(ask())
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "ValueError" in answer.json()["detail"]
    assert text not in answer.text
    counted = app.state.context.metrics.render(None).decode()
    assert 'judge_requests_total{code="500",route="/v1/judgements"} 1.0' in counted


def test_a_contracts_rubric_is_looked_at_when_the_service_starts() -> None:
    config = ApiConfig(queue=QueueConfig(redis_url="redis://x"), default_rubric="no-such")
    with pytest.raises(ConfigError, match="no-such"):
        create_app(config, JudgementQueue(connect("redis://x"), JudgeKeys()))


def test_every_route_has_an_example_and_every_problem_its_media_type() -> None:
    config = ApiConfig(queue=QueueConfig(redis_url="redis://x"))
    document = create_app(config, JudgementQueue(connect("redis://x"), JudgeKeys())).openapi()
    without = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            bodies = [operation["requestBody"]] if "requestBody" in operation else []
            good = [answer for code, answer in operation["responses"].items() if code == "200"]
            if path != "/metrics":
                without += [
                    (method, path)
                    for one in bodies + good
                    for media in one["content"].values()
                    if "example" not in media
                ]
            for code, answer in operation["responses"].items():
                if int(code) >= 400 and path != "/readyz":
                    assert list(answer["content"]) == ["application/problem+json"], (method, path, code)
                    assert answer["content"]["application/problem+json"]["example"]["status"] == int(code)
    assert without == []
