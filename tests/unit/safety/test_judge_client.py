"""The client against a judge behind httpx's transport seam; the real one is in tests/integration."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from shared.wire import ChatMessage, FailureCode, ScoreKind
from trainer.safety import judge_client
from trainer.safety.judge_client import Answer, JudgeClient
from trainer.safety.ledger import Failed, ItemKey, Scored, SourceName
from trainer.safety.question import Question, parse_id

JUDGE = {
    "kind": "rules", "model": "m", "rubric": "demo-v1", "rubric_hash": "h", "score_kind": "rules",
}  # fmt: skip


def scored(verdict_id: str, score: float = 0.25) -> dict[str, object]:
    return {
        "id": verdict_id, "status": "scored", "score": score, "level": 2, "judge": JUDGE,
        "timings": {"queue_ms": 3.0, "judge_ms": 4.0},
    }  # fmt: skip


def question(row: int = 0, made_at: int = 3, response: str = "ok") -> Question:
    return Question(
        ItemKey(made_at, SourceName.TARGET, row), (ChatMessage(role="user", content="hi"),), response
    )


class ScriptedJudge(httpx.BaseTransport):
    """Admits everything; `answer` says what each request gets."""

    def __init__(self, answer: Callable[[httpx.Request, dict[str, object]], httpx.Response]) -> None:
        self.answer = answer
        self.requests: list[tuple[str, dict[str, object]]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.read() or b"{}")
        self.requests.append((request.url.path, body))
        return self.answer(request, body)


@pytest.fixture
def connect() -> Iterator[Callable[..., tuple[JudgeClient, ScriptedJudge]]]:
    clients: list[JudgeClient] = []

    def make(
        answer: Callable[[httpx.Request, dict[str, object]], httpx.Response],
        deadline_s: float = 20.0,
        watches: bool = False,
    ) -> tuple[JudgeClient, ScriptedJudge]:
        judge = ScriptedJudge(answer)
        client = JudgeClient(
            url="http://judge", rubric="demo-v1", job_id="job", deadline_s=deadline_s, watches=watches,
            transport=judge,
        )  # fmt: skip
        clients.append(client)
        return client, judge

    yield make
    for client in clients:
        client.close()


def collect(client: JudgeClient, count: int, within_s: float = 15.0) -> list[Answer]:
    answers: list[Answer] = []
    until = time.monotonic() + within_s
    while len(answers) < count and time.monotonic() < until:
        client.wait_for_news(0.5)
        answers.extend(client.take())
    return answers


def all_scored(_request: httpx.Request, body: dict[str, object]) -> httpx.Response:
    ids = body.get("ids") or [item["id"] for item in body["items"]]  # type: ignore[index]
    return httpx.Response(200, json={"items": [scored(i) for i in ids]})  # type: ignore[union-attr]


def all_pending(_request: httpx.Request, body: dict[str, object]) -> httpx.Response:
    ids = body.get("ids") or [item["id"] for item in body["items"]]  # type: ignore[index]
    return httpx.Response(202, json={"items": [{"id": i, "status": "pending"} for i in ids]})  # type: ignore[union-attr]


def test_a_verdict_comes_back_to_its_question(connect: Callable) -> None:  # type: ignore[type-arg]
    client, judge = connect(all_scored)
    client.submit([question(0), question(7)])
    answers = collect(client, 2)
    assert {answer.arrival.key.row for answer in answers} == {0, 7}
    assert {answer.arrival.fate for answer in answers} == {Scored(0.25, ScoreKind.RULES)}
    assert answers[0].queue_ms == 3.0
    _, body = judge.requests[0]
    assert body["group"] == "job"
    item_id = body["items"][0]["id"]  # type: ignore[index]
    assert item_id.startswith("job:3:target:0:")
    assert len(item_id.rsplit(":", 1)[1]) == 16


def test_submit_returns_at_once_although_the_judge_hangs(connect: Callable) -> None:  # type: ignore[type-arg]
    release = threading.Event()

    def hang(request: httpx.Request, body: dict[str, object]) -> httpx.Response:
        release.wait(10)
        return all_scored(request, body)

    client, _ = connect(hang)
    began = time.monotonic()
    client.submit([question(row) for row in range(100)])
    assert client.take() == []
    assert time.monotonic() - began < 1.0
    release.set()
    assert len(collect(client, 100)) == 100


def test_an_outage_is_outlasted_under_the_same_ids(connect: Callable) -> None:  # type: ignore[type-arg]
    tries: list[object] = []

    def flaky(request: httpx.Request, body: dict[str, object]) -> httpx.Response:
        tries.append(body["items"][0]["id"])  # type: ignore[index]
        if len(tries) == 1:
            raise httpx.ConnectError("connection refused")
        if len(tries) == 2:
            return httpx.Response(503, json={"detail": "queue full"}, headers={"Retry-After": "1"})
        if len(tries) == 3:
            return httpx.Response(200, content=b"<html>not a judge</html>")
        return all_scored(request, body)

    client, _ = connect(flaky)
    client.submit([question()])
    answers = collect(client, 1)
    assert answers[0].arrival.fate == Scored(0.25, ScoreKind.RULES)
    assert len(tries) == 4
    assert len(set(tries)) == 1
    assert client.trouble is None


def test_an_unreachable_judge_ends_in_a_timeout_that_names_it(connect: Callable) -> None:  # type: ignore[type-arg]
    def refuse(request: httpx.Request, body: dict[str, object]) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    client, _ = connect(refuse, deadline_s=0.5)
    client.submit([question()])
    answers = collect(client, 1)
    assert answers[0].arrival.fate == Failed(FailureCode.TIMEOUT)
    assert client.trouble is not None
    assert "no answer from the judge at http://judge: connection refused. Is it up?" in client.trouble


def test_a_refusal_stops_the_run_rather_than_looking_like_a_slow_judge(connect: Callable) -> None:  # type: ignore[type-arg]
    client, _ = connect(lambda *_: httpx.Response(422, json={"detail": "unknown rubric 'x'"}))
    client.submit([question()])
    client.wait_for_news(10)
    assert client.refusal is not None
    assert "unknown rubric 'x'" in str(client.refusal)


def test_a_failed_verdict_stays_a_failure(connect: Callable) -> None:  # type: ignore[type-arg]
    def fail(_request: httpx.Request, body: dict[str, object]) -> httpx.Response:
        verdict = {
            "id": body["items"][0]["id"], "status": "failed",  # type: ignore[index]
            "error": {"code": "parse_error", "message": "no label"},
            "timings": {"queue_ms": 0, "judge_ms": 0},
        }  # fmt: skip
        return httpx.Response(200, json={"items": [verdict]})

    client, _ = connect(fail)
    client.submit([question()])
    assert collect(client, 1)[0].arrival.fate == Failed(FailureCode.PARSE_ERROR)


def test_ids_that_the_judge_has_lost_are_asked_again(connect: Callable) -> None:  # type: ignore[type-arg]
    posts = []

    def forgetful(request: httpx.Request, body: dict[str, object]) -> httpx.Response:
        if request.url.path.endswith("/read"):
            return httpx.Response(404, json={"detail": "unknown id"})
        posts.append(body)
        return all_pending(request, body) if len(posts) == 1 else all_scored(request, body)

    client, _ = connect(forgetful)
    client.submit([question()])
    assert collect(client, 1)[0].arrival.fate == Scored(0.25, ScoreKind.RULES)
    assert len(posts) == 2


def test_after_an_outage_ids_are_new(connect: Callable) -> None:  # type: ignore[type-arg]
    """The judge keeps the first verdict of an id, and the outage's were `expired`."""
    client, judge = connect(all_scored)
    client.outage_over(2, anew_from=5)
    client.submit([question()])
    collect(client, 1)
    _, body = judge.requests[0]
    assert body["items"][0]["id"].startswith("job.2:3:target:0:")  # type: ignore[index]
    assert body["group"] == "job"


def test_a_suspect_score_is_no_score(connect: Callable) -> None:  # type: ignore[type-arg]
    def suspect(_request: httpx.Request, body: dict[str, object]) -> httpx.Response:
        verdict = {**scored(body["items"][0]["id"]), "suspect": True}  # type: ignore[index]
        return httpx.Response(200, json={"items": [verdict]})

    client, _ = connect(suspect)
    client.submit([question()])
    assert collect(client, 1)[0].arrival.fate == Failed(FailureCode.UNTRUSTED)


def test_an_id_says_what_was_asked() -> None:
    asked = question(row=7, made_at=-2)
    assert parse_id(asked.id("ftjob-1.3")) == ("ftjob-1.3", asked.key)
    assert parse_id(asked.id("train:with:colons")) == ("train:with:colons", asked.key)
    assert parse_id("somebody-else's") is None


def test_one_rank_watches_the_judge_and_tells_once_of_what_it_withdraws(
    connect: Callable,  # type: ignore[type-arg]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(judge_client, "WATCH_S", 0.01)
    old, new, others = question(1, made_at=2), question(2, made_at=9), question(3, made_at=9)
    looks: list[str] = []

    def answer(request: httpx.Request, body: dict[str, object]) -> httpx.Response:
        looks.append(request.url.path)
        if request.url.path == "/readyz":
            item = {"breaker": {"state": "open", "reason": "judge_untrusted", "detail": "missed 2 pairs"}}
            workers = {"alive": 1, "not_taking": ["w"], "items": [item]}
            return httpx.Response(200, json={"components": {"workers": workers}})
        ids = [old.id("job"), new.id("job.1"), others.id("job"), "elsewhere"]
        return httpx.Response(200, json={"object": "list", "group": "job", "ids": ids})

    client, _ = connect(answer, watches=True)
    client.outage_over(1, anew_from=5)
    answers = collect(client, 2)
    until = time.monotonic() + 10
    while len(looks) < 8 and time.monotonic() < until:
        time.sleep(0.01)
    assert client.take() == []
    # Row 3's reading was asked again after the outage: its old verdict is nobody's any more.
    assert [a.arrival.key for a in answers] == [old.key, new.key]
    assert {a.arrival.fate for a in answers} == {Failed(FailureCode.UNTRUSTED)}
    assert client.state == (
        "none of the 1 workers of the judge at http://judge takes work: judge_untrusted (missed 2 pairs)"
    )
