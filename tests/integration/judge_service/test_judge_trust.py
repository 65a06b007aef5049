"""A judge that is wrong, or away, while everything else works: real workers, a real API."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from judge_service.queue.streams import GROUP
from shared.embedded_redis import RunningRedis
from shared.redis_keys import JudgeKeys
from shared.wire import JudgementList

pytestmark = pytest.mark.integration

Submission = Callable[..., dict[str, Any]]


def eventually(condition: Callable[[], bool], what: str, within_s: float = 30) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, f"not within {within_s} s: {what}"
        time.sleep(0.05)


def breakers(client: httpx.Client) -> list[tuple[str, str | None]]:
    """(state, reason) of each worker that is alive."""
    workers = client.get("/readyz").json()["components"]["workers"]["items"]
    return [(worker["breaker"]["state"], worker["breaker"]["reason"]) for worker in workers]


def is_open(client: httpx.Client, reason: str) -> bool:
    return any(state != "closed" and why == reason for state, why in breakers(client))


def verdicts(client: httpx.Client, ids: list[str]) -> list[Any]:
    read = client.post("/v1/judgements/read", json={"ids": ids})
    assert read.status_code == 200, read.text
    return JudgementList.model_validate_json(read.content).items


def scored(client: httpx.Client, body: dict[str, Any]) -> list[Any]:
    response = client.post("/v1/judgements", json={**body, "wait_s": 30})
    assert response.status_code == 200, response.text
    items = JudgementList.model_validate_json(response.content).items
    assert {item.status for item in items} == {"scored"}
    return items


@pytest.mark.parametrize("level", [1, 5])
def test_a_judge_that_says_the_same_to_everything_never_starts(
    processes: Any, submission: Submission, tmp_path: Path, level: int
) -> None:
    client = processes.api()
    bad = tmp_path / "bad"
    bad.touch()
    worker = processes.worker("--faulty", f"say={level},only_while={bad}", "--controls", "--lease-s", "1")
    assert worker.ready["breaker"]["reason"] == "starting"
    eventually(lambda: is_open(client, "judge_untrusted"), "the control pairs are missed")
    body = submission(3)
    assert client.post("/v1/judgements", json={**body, "wait_s": 2}).status_code == 202
    [said] = client.get("/readyz").json()["components"]["workers"]["items"]
    assert "control pairs" in said["breaker"]["detail"]
    # It keeps trying, and works once it can be trusted.
    bad.unlink()
    assert not any(item.suspect for item in scored(client, body))


def test_verdicts_since_the_last_good_controls_are_suspect(
    processes: Any, submission: Submission, tmp_path: Path, redis_server: RunningRedis, redis_prefix: str
) -> None:
    client = processes.api()
    bad = tmp_path / "bad"
    spec = f"say=1,only_while={bad}"
    processes.worker("--faulty", spec, "--controls", "--control-s", "3", "--lease-s", "1")
    trusted = scored(client, submission(4, group="g"))
    with redis.Redis.from_url(redis_server.url) as db:
        # Vouched for by the next round of control pairs.
        lists = f"{redis_prefix}unvouched:*:*"
        eventually(lambda: not list(db.scan_iter(match=lists)), "good controls vouch for what was judged")
        bad.touch()
        doubtful = scored(client, submission(70, start=4, group="g"))
        assert len(list(db.scan_iter(match=lists))) == 1
    eventually(lambda: is_open(client, "judge_untrusted"), "the control pairs are missed")
    names = {item.id for item in doubtful}

    def suspects() -> set[str]:
        answer = client.get("/v1/judgements/suspects", params={"group": "g"})
        assert answer.status_code == 200
        return set(answer.json()["ids"])

    eventually(lambda: suspects() == names, "all since the last good controls are suspect")
    assert all(item.suspect for item in verdicts(client, sorted(names)))
    assert not any(item.suspect for item in verdicts(client, [item.id for item in trusted]))
    assert client.get("/v1/judgements/suspects", params={"group": "other"}).json()["ids"] == []
    # And nothing new is judged until the judge is right again.
    late = submission(2, start=80, group="g")
    assert client.post("/v1/judgements", json={**late, "wait_s": 1}).status_code == 202
    bad.unlink()
    assert not any(item.suspect for item in scored(client, late))


def test_what_a_dead_worker_judged_is_marked_by_the_next(
    processes: Any, submission: Submission, tmp_path: Path
) -> None:
    client = processes.api()
    bad = tmp_path / "bad"
    args = ("--faulty", f"say=1,only_while={bad}", "--controls", "--control-s", "3600", "--lease-s", "1")
    first = processes.worker(*args)
    scored(client, submission(2))
    bad.touch()
    scored(client, submission(3, start=2))
    first.process.kill()
    first.process.wait()
    # Started anew it misses at once, which also says of what the dead one left that nobody vouched for it.
    eventually(lambda: not breakers(client), "the dead worker no longer counts")
    processes.worker(*args)
    ids = [f"item-{n}" for n in range(5)]
    eventually(lambda: all(item.suspect for item in verdicts(client, ids)), "the dead worker's are marked")


def test_a_stream_of_equal_answers_is_seen_before_the_next_controls(
    processes: Any, submission: Submission, tmp_path: Path
) -> None:
    client = processes.api()
    bad = tmp_path / "bad"
    spec = f"constant=true,only_while={bad}"
    processes.worker("--faulty", spec, "--controls", "--control-s", "3600", "--lease-s", "1")
    scored(client, submission(4))
    bad.touch()
    assert client.post("/v1/judgements", json=submission(70, start=4)).status_code == 202
    eventually(lambda: is_open(client, "judge_untrusted"), "the constant stream is seen")
    bad.unlink()
    # What was judged since then is suspect, or is judged again.
    body = submission(70, start=4)
    after = scored(client, body)
    eventually(
        lambda: all(v.suspect or v.score == 0.0 for v in verdicts(client, [v.id for v in after])),
        "no equal answer is left unmarked",
    )


def test_an_absent_backend_costs_no_delivery(
    processes: Any, submission: Submission, tmp_path: Path, redis_server: RunningRedis, redis_prefix: str
) -> None:
    client = processes.api()
    away = tmp_path / "away"
    spec = f"away=true,only_while={away}"
    processes.worker("--faulty", spec, "--controls", "--lease-s", "1", "--max-deliveries", "1")
    scored(client, submission(1))
    away.touch()
    body = submission(8, start=1)
    assert client.post("/v1/judgements", json=body).status_code == 202
    eventually(lambda: is_open(client, "backend_unavailable"), "the breaker is open")
    with redis.Redis.from_url(redis_server.url) as db:
        stream = JudgeKeys(redis_prefix).streams()[1]

        def held() -> set[tuple[bytes, int]]:
            entries = db.xpending_range(stream, GROUP, "-", "+", 100)
            return {(entry["consumer"], entry["times_delivered"]) for entry in entries}

        eventually(lambda: held() == {(b"released", 0)}, "what was held is given back uncounted")
        assert db.xlen(stream) == 8
    assert client.get("/readyz").status_code == 200
    away.unlink()
    # With one delivery allowed each, any that was counted would have ended as a failure.
    scored(client, body)


def test_a_group_is_judged_by_one_kind_of_score(
    processes: Any, submission: Submission, redis_server: RunningRedis, redis_prefix: str
) -> None:
    client = processes.api()
    with redis.Redis.from_url(redis_server.url) as db:
        db.set(JudgeKeys(redis_prefix).kind("mine"), "label_probability")
    processes.worker()
    response = client.post("/v1/judgements", json=submission(1, group="mine", wait_s=20))
    [verdict] = JudgementList.model_validate_json(response.content).items
    assert verdict.error.code == "server_error"
    assert "gives rules scores, and this group has label_probability ones" in verdict.error.message
    scored(client, submission(1, start=1, group="yours"))
