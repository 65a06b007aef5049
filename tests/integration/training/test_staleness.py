"""Bounded staleness on real parts: torchrun ranks, the judge's API, its queue and its workers."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest

from trainer.training.run_spec import CONTROLLER_LOG

pytestmark = pytest.mark.integration


@pytest.fixture
def start_run(start_run: Callable[..., Any]) -> Callable[..., Any]:
    return partial(start_run, forked=True)


def adaptive(**staleness: Any) -> dict[str, Any]:
    return {
        "type": "adaptive",
        "sources": [
            {"type": "target", "look_ahead": 6},
            {"type": "policy", "samples_per_step": 4, "max_new_tokens": 6},
        ],
        "staleness": {"max_staleness": 3, "deadline_s": 30, **staleness},
    }


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_readings_stay_within_the_bound_with_a_slow_judge(
    start_run: Callable[..., Any], judge: Any, zero_stage: int
) -> None:
    judge.start(faulty="delay_s=0.3,jitter_s=0.3,seed=1")
    method = adaptive()
    method["sources"].append({"type": "reference"})
    run = start_run("slow", method, judge_url=judge.url, zero_stage=zero_stage, steps=15)
    assert run.wait().status == "succeeded"
    metrics = run.metrics()
    assert [event.step for event in metrics] == list(range(1, 16))
    assert max(event.staleness for event in metrics) <= 3
    assert not any(event.overdue for event in metrics)
    # Every row's own target reading was there when it trained.
    assert all(event.bases["own"] == 16 for event in metrics)
    assert len({round(event.beta, 6) for event in metrics}) > 1
    calls = [json.loads(line) for line in (run.run_dir / CONTROLLER_LOG).read_text().splitlines()]
    asked = [row for c in calls if c["op"] == "open" for source, row in c["items"] if source == "reference"]
    assert len(asked) >= len(set(asked)) > 20
    # Once a row, but for rows that come again before their first reading is in.
    assert len(asked) < sum(
        source == "policy" for c in calls if c["op"] == "open" for source, _ in c["items"]
    )


def test_a_judge_that_cannot_keep_up_is_asked_less_a_step_and_no_step_less(
    start_run: Callable[..., Any], judge: Any
) -> None:
    judge.start(faulty="delay_s=0.4,seed=1")
    run = start_run("behind", adaptive(max_staleness=1), judge_url=judge.url, steps=14)
    assert run.wait().status == "succeeded"
    samples = [event.samples for event in run.metrics()]
    assert samples[:8] == [4] * 8
    assert samples[-1] == 2
    assert "waited for the judge: from now on it reads 2 answers of the policy a step" in run.messages()
    assert max(event.staleness for event in run.metrics()) <= 1


def test_a_dead_judge_parks_the_run_and_it_goes_on_when_the_judge_is_back(
    start_run: Callable[..., Any], judge: Any
) -> None:
    judge.start()
    method = adaptive(deadline_s=3, overdue="park")
    run = start_run("parked", method, judge_url=judge.url, steps=3000, checkpoint_every=5000)
    run.wait_for_step(5)
    port = int(judge.url.rsplit(":", 1)[1])
    for child in judge.children:
        child.process.send_signal(signal.SIGKILL)
    outcome = run.wait()
    assert outcome.status == "parked"
    assert outcome.error.code == "judge_unavailable"
    assert f"no answer from the judge at {judge.url}" in outcome.error.message
    assert "park: the job is checkpointed and waits for the judge" in run.messages()
    assert max(event.staleness for event in run.metrics()) <= 3
    assert max(event.wait_s for event in run.metrics()) < 4

    judge.start(port=port)
    again = start_run("parked", method, judge_url=judge.url, steps=outcome.step + 8)
    assert again.wait().status == "succeeded"
    assert max(event.staleness for event in again.metrics()) <= 3
    assert not any(event.overdue for event in again.metrics())


def test_a_judge_that_was_never_there_fails_closed_and_the_job_does_not_succeed(
    start_run: Callable[..., Any],
) -> None:
    method = adaptive(deadline_s=2, overdue="fail_closed", max_unread_fraction=0.5)
    run = start_run("unread", method, steps=20)
    outcome = run.wait()
    assert outcome.status == "failed"
    assert outcome.error.code == "judge_unavailable"
    assert outcome.artifact == "artifact"
    trained = run.metrics()
    assert trained, "up to its limit it trains"
    assert {event.beta for event in trained} == {1.0}
    assert all(event.overdue or event.bases["closed"] == 16 for event in trained)
    # For the scan, which times out and so resolves; then for readings, once.
    assert 1 <= sum(event.wait_s > 1 for event in trained) <= 2
    assert max(event.wait_s for event in trained) < 3


def test_a_wrong_rubric_ends_the_run_with_the_judges_words(start_run: Callable[..., Any], judge: Any) -> None:
    judge.start()
    run = start_run("rubric", {**adaptive(), "rubric": "no-such"}, judge_url=judge.url)
    outcome = run.wait()
    assert outcome.status == "failed"
    assert outcome.error.code == "judge_refused"
    assert "no-such" in outcome.error.message


def test_a_killed_judge_worker_costs_nothing_and_every_item_gets_one_verdict(
    start_run: Callable[..., Any], judge: Any
) -> None:
    judge.start(faulty="delay_s=0.2,seed=1")
    run = start_run("killed", adaptive(), judge_url=judge.url, steps=60)
    run.wait_for_step(4)
    judge.children[-1].process.send_signal(signal.SIGKILL)  # with a batch in its hands
    judge.worker()
    assert run.wait().status == "succeeded"
    assert max(event.staleness for event in run.metrics()) <= 3
    assert not any(event.overdue for event in run.metrics())

    calls = [json.loads(line) for line in (run.run_dir / "controller.jsonl").read_text().splitlines()]
    told = [arrival for call in calls if call["op"] == "receive" for arrival in call["arrivals"]]
    answered = [(u, source, row) for u, source, row, *_ in told]
    assert len(answered) == len(set(answered)), "an item was answered twice"
    trained = {(call["t"], row) for call in calls if call["op"] == "decide" for row in call["rows"]}
    assert {row for _, row in trained} <= {row for _, source, row in answered if source == "target"}
    assert all(isinstance(score, float) for _, _, _, score, _ in told), "an item failed"
    depth = httpx.get(f"{judge.url}/readyz").json()["components"]["queue"]["depth"]
    assert set(depth) == {"policy", "target", "evaluation"}
