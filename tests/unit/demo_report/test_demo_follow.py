"""Reading a job's events."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from shared.errors import ServiceError, TrainingError
from shared.jobs import (
    Hyperparameters,
    Job,
    JobError,
    JobEvent,
    JobSafety,
    JobStatus,
    OpenAIMethod,
    SafetyState,
)
from shared.training import Training
from trainer.demo.follow import Follower, cancel_unfinished, curves, step_metrics, values_line


def step_event(step: int, *, staleness: int | None = 2, **more: Any) -> JobEvent:
    data = {
        "step": step, "steps": 240, "loss": 0.5 / step, "nll": 0.4, "kl": 0.1, "beta": 0.19, "risk": 0.34,
        "staleness": staleness, "wait_s": 0.0, "step_s": 0.11, "learning_rate": 1e-4, "tokens": 99,
        "eta_s": 83.2, "bases": {"own": 16}, **more,
    }  # fmt: skip
    return JobEvent(id=f"ev-{step}", created_at=1, level="info", message="Step", type="metrics", data=data)


def said(number: int, level: str = "info") -> JobEvent:
    return JobEvent.model_validate(
        {"id": f"said-{number}", "created_at": 1, "level": level, "message": "the judge is slow"}
    )


def test_a_metrics_event_is_a_step_and_a_message_is_none():
    at = step_metrics(step_event(3))
    assert at is not None
    assert (at.step, at.steps, at.beta, at.risk, at.staleness) == (3, 240, 0.19, 0.34, 2)
    assert step_metrics(said(1)) is None


def test_a_step_without_its_beta_is_refused_by_name():
    event = step_event(3)
    assert event.data is not None
    del event.data["beta"]
    with pytest.raises(ServiceError, match=r"data\.beta"):
        step_metrics(event)


def test_the_line_beside_the_bar_fits_and_says_when_nothing_is_judged():
    judged, alone = step_metrics(step_event(3)), step_metrics(step_event(3, staleness=None))
    assert judged is not None
    assert alone is not None
    assert values_line(judged) == "loss 0.17 beta 0.19 risk 0.34 stale 2 ETA 01:23"
    assert values_line(alone) == "loss 0.17 beta 0.19 risk    - stale - ETA 01:23"


def test_curves_are_in_order_and_have_no_risk_where_nothing_is_judged():
    steps = [step_metrics(step_event(number, staleness=None)) for number in (2, 1)]
    drawn = curves({at.step: at for at in steps if at is not None})
    assert drawn.step == [1, 2]
    assert drawn.loss == [0.5, 0.25]
    assert drawn.risk == drawn.staleness == [None, None]


class FakeTrainer:
    """Jobs whose next states and events are written down beforehand."""

    def __init__(self, states: dict[str, list[Job]], events: dict[str, list[JobEvent]]) -> None:
        self.states = states
        self.all_events = events
        self.asked_after: list[str | None] = []
        self.cancelled: list[str] = []

    def job(self, job_id: str) -> Job:
        states = self.states[job_id]
        return states.pop(0) if len(states) > 1 else states[0]

    def events(self, job_id: str, after: str | None) -> list[JobEvent]:
        self.asked_after.append(after)
        events = self.all_events[job_id]
        known = [event.id for event in events]
        return events[known.index(after) + 1 if after else 0 :]

    def cancel(self, job_id: str) -> Job:
        self.cancelled.append(job_id)
        self.states[job_id] = [job(job_id, JobStatus.CANCELLED)]
        return self.states[job_id][0]


def job(job_id: str, status: JobStatus, *, error: str | None = None, paused: str | None = None) -> Job:
    return Job(
        id=job_id, created_at=1, model="tether-tiny", status=status, hyperparameters=Hyperparameters(),
        method=OpenAIMethod(), training_file="file-1", seed=0, training=Training(),
        error=JobError(code="rank_died", message=error) if error else None,
        safety=JobSafety(
            state=SafetyState.PAUSED if paused else SafetyState.ACTIVE, reason=paused,
            method={"type": "adaptive"},
        ),
    )  # fmt: skip


def follower(trainer: FakeTrainer, text: io.StringIO) -> Follower:
    return Follower(trainer, {"sft": "job-1"}, Console(file=text))  # type: ignore[arg-type]


def test_following_reads_each_event_once_and_repeated_steps_overwrite():
    states = [job("job-1", JobStatus.RUNNING), job("job-1", JobStatus.SUCCEEDED)]
    again = step_event(2, loss=0.125).model_copy(update={"id": "ev-2-again"})
    trainer = FakeTrainer({"job-1": states}, {"job-1": [step_event(1), step_event(2), again]})
    text = io.StringIO()
    with follower(trainer, text) as following:
        followed = following.wait("sft")
    assert trainer.asked_after == [None, "ev-2-again"]
    assert curves(followed.steps).loss == [0.5, 0.125]
    assert "sft: succeeded" in text.getvalue()


def test_a_job_that_failed_ends_the_wait_with_its_message():
    failed = job("job-1", JobStatus.FAILED, error="the run lost a rank")
    trainer = FakeTrainer({"job-1": [failed]}, {"job-1": [said(1, "warn")]})
    text = io.StringIO()
    with pytest.raises(TrainingError, match=r"sft \(job-1\) ended failed: the run lost a rank"):
        follower(trainer, text).wait("sft")
    assert "the judge is slow" in text.getvalue()


def test_a_parked_job_says_why_it_waits():
    states = [job("job-1", JobStatus.QUEUED, paused="the judge is away"), job("job-1", JobStatus.SUCCEEDED)]
    text = io.StringIO()
    follower(FakeTrainer({"job-1": states}, {"job-1": []}), text).wait("sft")
    assert "sft waits: the judge is away" in text.getvalue()


def test_cancelling_begins_with_the_last_job_and_leaves_what_has_ended():
    trainer = FakeTrainer(
        {
            "a": [job("a", JobStatus.SUCCEEDED)],
            "b": [job("b", JobStatus.RUNNING)],
            "c": [job("c", JobStatus.QUEUED)],
        },
        {},
    )
    cancel_unfinished(trainer, ["a", "b", "c"])  # type: ignore[arg-type]
    assert trainer.cancelled == ["c", "b"]
