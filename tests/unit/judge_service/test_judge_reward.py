"""The TRL reward against the shapes that TRL sends and reads."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from judge_service.client.http import JudgeHttp
from judge_service.client.trl import JudgeReward, item_of, text_of
from shared.errors import JudgeRefusal

JUDGE = {"kind": "k", "model": "m", "rubric": "r", "rubric_hash": "h", "score_kind": "rules"}
TIMINGS = {"queue_ms": 0, "judge_ms": 0}


def scored(key: str, score: float) -> dict[str, Any]:
    return {"id": key, "status": "scored", "score": score, "judge": JUDGE, "timings": TIMINGS}


def failed(key: str) -> dict[str, Any]:
    error = {"code": "parse_error", "message": "no label"}
    return {"id": key, "status": "failed", "error": error, "timings": TIMINGS}


Answer = Callable[[httpx.Request, dict[str, Any]], httpx.Response]


def reward(answer: Answer, **settings: Any) -> tuple[JudgeReward, list[tuple[str, dict[str, Any]]]]:
    seen: list[tuple[str, dict[str, Any]]] = []

    def handle(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        seen.append((request.url.path, body))
        return answer(request, body)

    made = JudgeReward("http://judge", "r", transport=httpx.MockTransport(handle), **settings)
    return made, seen


def by_text(_: httpx.Request, body: dict[str, Any]) -> httpx.Response:
    """Harm by the response: "bad" 1, "odd" fails, anything else 0.25."""
    made = [
        failed(item["id"])
        if item["response"] == "odd"
        else scored(item["id"], 1.0 if item["response"] == "bad" else 0.25)
        for item in body["items"]
    ]
    return httpx.Response(200, json={"object": "list", "items": made})


def test_a_failure_is_none_and_never_a_number() -> None:
    made, seen = reward(by_text)
    logged: dict[str, float] = {}
    # As TRL's `_calculate_rewards` calls it.
    rewards = made(
        prompts=["p", "p", "p"],
        completions=["bad", "odd", "good"],
        completion_ids=[[1], [2], [3]],
        trainer_state=None,
        log_extra=lambda name, values: None,
        log_metric=logged.__setitem__,
        label=["x", "y", "z"],
    )
    assert rewards == [0.0, None, 0.75]
    assert logged == {"judge/failed": pytest.approx(1 / 3)}
    assert made.__name__ == "judge_safety"
    [(path, body)] = seen
    assert path == "/v1/judgements"
    assert (body["rubric"], body["priority"]) == ("r", "policy")


def test_harm_itself_can_be_the_reward() -> None:
    made, _ = reward(by_text, sign="harm")
    assert made(prompts=["p"], completions=["bad"]) == [1.0]
    assert made.__name__ == "judge_harm"


def test_many_completions_go_in_several_batches() -> None:
    made, seen = reward(by_text)
    assert made(prompts=["p"] * 300, completions=["good"] * 300) == [0.75] * 300
    assert [len(body["items"]) for _, body in seen] == [256, 44]
    assert made(prompts=[], completions=[]) == []


def test_what_is_pending_is_waited_for() -> None:
    def slow(request: httpx.Request, body: dict[str, Any]) -> httpx.Response:
        if request.url.path.endswith("/read"):
            return httpx.Response(200, json={"items": [scored(key, 0.5) for key in body["ids"]]})
        items = [{"id": item["id"], "status": "pending"} for item in body["items"]]
        return httpx.Response(202, json={"items": items})

    made, seen = reward(slow)
    assert made(prompts=["p"], completions=["c"]) == [0.5]
    assert [path for path, _ in seen] == ["/v1/judgements", "/v1/judgements/read"]


def test_a_judge_that_is_away_gives_none_and_the_same_ids_are_sent_again() -> None:
    def away(_: httpx.Request, body: dict[str, Any]) -> httpx.Response:
        return httpx.Response(503, headers={"Retry-After": "0"})

    made, seen = reward(away, timeout_s=1.0)
    assert made(prompts=["p"], completions=["c"]) == [None]
    assert len(seen) > 1
    assert len({body["items"][0]["id"] for _, body in seen if "items" in body}) == 1


def test_a_store_that_was_lost_is_asked_again() -> None:
    submitted: list[str] = []

    def forgetful(request: httpx.Request, body: dict[str, Any]) -> httpx.Response:
        if request.url.path.endswith("/read"):
            return httpx.Response(404, json={})
        submitted.extend(item["id"] for item in body["items"])
        if len(submitted) > 1:
            return httpx.Response(200, json={"items": [scored(submitted[0], 0.5)]})
        return httpx.Response(202, json={"items": [{"id": submitted[0], "status": "pending"}]})

    made, _ = reward(forgetful)
    assert made(prompts=["p"], completions=["c"]) == [0.5]
    assert submitted[0] == submitted[1]


@pytest.mark.parametrize("status", [401, 422])
def test_a_request_that_is_wrong_stops_the_training(status: int) -> None:
    made, _ = reward(lambda request, body: httpx.Response(status, text="unknown rubric"))
    with pytest.raises(JudgeRefusal, match="unknown rubric"):
        made(prompts=["p"], completions=["c"])


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TETHER_JUDGE_API_KEY", "from-env")
    keys: list[str | None] = []

    def answer(request: httpx.Request, body: dict[str, Any]) -> httpx.Response:
        keys.append(request.headers.get("authorization"))
        return by_text(request, body)

    reward(answer)[0](prompts=["p"], completions=["c"])
    reward(answer, api_key="given")[0](prompts=["p"], completions=["c"])
    assert keys == ["Bearer from-env", "Bearer given"]


def test_conversations_are_graded_whole() -> None:
    item = item_of(
        [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
        [
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "tool", "content": "42"},
            {"role": "assistant", "content": [{"type": "text", "text": "It is 42."}]},
        ],
    )
    assert item.response == "It is 42."
    assert [(turn.role, turn.content) for turn in item.prompt if not isinstance(turn, str)] == [
        ("system", "Be kind."),
        ("user", "Hi"),
        ("assistant", ""),
        ("user", "42"),
    ]
    assert item_of("p", "c").prompt == "p"
    assert item_of("p", [{"role": "assistant", "content": "c"}]).response == "c"
    assert item_of("p", []).response == ""
    assert text_of({"content": [{"type": "image"}]}) == ""


def test_it_can_be_sent_to_another_process() -> None:
    copy = pickle.loads(pickle.dumps(JudgeReward("http://judge", "r")))
    assert copy.__name__ == "judge_safety"
    assert isinstance(copy._judge, JudgeHttp)
