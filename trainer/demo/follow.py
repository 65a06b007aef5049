"""Following jobs by their events: one live bar each, and the curves for the report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from shared.errors import ServiceError, TrainingError
from shared.jobs import TERMINAL, Job, JobEvent, JobStatus, SafetyState
from trainer.demo import interrupt
from trainer.demo.client import Trainer
from trainer.demo.report import Curves

POLL_S = 0.3


class StepMetrics(BaseModel):
    """What a metrics event says of one optimizer step."""

    model_config = ConfigDict(frozen=True)

    step: int
    steps: int
    loss: float
    beta: float
    """Mean over the step's examples."""
    risk: float
    staleness: int | None
    """In steps; None where nothing is judged."""
    wait_s: float
    step_s: float
    eta_s: float


def step_metrics(event: JobEvent) -> StepMetrics | None:
    """None for an event that is no step. Raises ServiceError for a step that lacks a value."""
    if event.type != "metrics":
        return None
    try:
        return StepMetrics.model_validate(event.data)
    except ValidationError as error:
        first = error.errors()[0]
        raise ServiceError(f"event {event.id}: data.{first['loc'][0]}: {first['msg']}") from error


def curves(steps: Mapping[int, StepMetrics]) -> Curves:
    ordered = [steps[number] for number in sorted(steps)]
    return Curves(
        step=[at.step for at in ordered],
        loss=[round(at.loss, 5) for at in ordered],
        beta=[round(at.beta, 5) for at in ordered],
        # A run without a judge reports a constant in its place.
        risk=[None if at.staleness is None else round(at.risk, 5) for at in ordered],
        staleness=[at.staleness for at in ordered],
        wait_s=[round(at.wait_s, 4) for at in ordered],
        step_s=[round(at.step_s, 4) for at in ordered],
    )


def values_line(at: StepMetrics) -> str:
    """What stands beside the bar."""
    risk = "    -" if at.staleness is None else f"{at.risk:5.2f}"
    stale = "-" if at.staleness is None else str(at.staleness)
    eta = str(timedelta(seconds=round(at.eta_s)))[-5:]
    return f"loss {at.loss:.2f} beta {at.beta:.2f} risk{risk} stale {stale} ETA {eta}"


@dataclass
class Followed:
    name: str
    job_id: str
    bar: TaskID
    status: JobStatus = JobStatus.QUEUED
    reason: str | None = None
    after: str | None = None
    """The last event that was read."""
    began: float | None = None
    ended: float | None = None
    steps: dict[int, StepMetrics] = field(default_factory=dict)
    """By step: a run that went back to a checkpoint overwrites what it does again."""

    @property
    def seconds(self) -> float:
        """From the claim to the end, start of the ranks included."""
        return (self.ended or time.monotonic()) - (self.began or self.ended or time.monotonic())


class Follower:
    """Use as a context: bars are shown inside it."""

    def __init__(self, trainer: Trainer, jobs: Mapping[str, str], console: Console, label: str = "") -> None:
        self._trainer = trainer
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            console=console,
        )
        self.jobs = {
            name: Followed(
                name, job_id, self._progress.add_task(label + name, start=False, total=None, values="queued")
            )
            for name, job_id in jobs.items()
        }
        self._label = label
        self._other_bars: dict[str, TaskID] = {}

    def __enter__(self) -> Follower:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def wait(self, name: str) -> Followed:
        """Until the job has succeeded. Raises TrainingError when any of them ended otherwise."""
        while (job := self.jobs[name]).status not in TERMINAL:
            self.poll()
            if job.status not in TERMINAL:
                time.sleep(POLL_S)
        return job

    def poll(self) -> None:
        """Reads what is new. Raises TrainingError when a job ended without success."""
        interrupt.check()
        for followed in self.jobs.values():
            if followed.status not in TERMINAL:
                self._poll(followed)

    def show(self, name: str, text: str, done: int, total: int) -> None:
        """Says something beside a bar; the base, which no job makes, gets one of its own."""
        if name in self.jobs:
            self._progress.update(self.jobs[name].bar, values=text)
            return
        if name not in self._other_bars:
            self._other_bars[name] = self._progress.add_task(self._label + name, values="")
        self._progress.update(self._other_bars[name], values=text, completed=done, total=total)

    def _poll(self, followed: Followed) -> None:
        # The job before its events: of one that has ended, all of them are then read.
        job = self._trainer.job(followed.job_id)
        self._note_status(followed, job)
        for event in self._trainer.events(followed.job_id, followed.after):
            followed.after = event.id
            if (at := step_metrics(event)) is not None:
                followed.steps[at.step] = at
                self._progress.update(followed.bar, completed=at.step, total=at.steps, values=values_line(at))
            elif event.level != "info":
                self._console.print(
                    f"{self._label}{followed.name}: {event.message}", style="yellow", markup=False
                )
        if job.status in TERMINAL and job.status is not JobStatus.SUCCEEDED:
            why = job.error.message if job.error else "no reason given"
            raise TrainingError(f"the job {followed.name} ({job.id}) ended {job.status.value}: {why}")

    def _note_status(self, followed: Followed, job: Job) -> None:
        paused = job.safety.reason if job.safety.state is SafetyState.PAUSED else None
        if paused != followed.reason:
            followed.reason = paused
            if paused is not None:
                self._console.print(
                    f"{self._label}{followed.name} waits: {paused}", style="yellow", markup=False
                )
        if job.status is followed.status:
            return
        followed.status = job.status
        if job.status is JobStatus.RUNNING:
            followed.began = followed.began or time.monotonic()
            self._progress.update(followed.bar, values="starting its ranks")
        elif job.status in TERMINAL:
            followed.ended = time.monotonic()
            self._console.print(
                f"{self._label}{followed.name}: {job.status.value} after {followed.seconds:.0f} s",
                highlight=False,
            )


def cancel_unfinished(trainer: Trainer, job_ids: list[str], *, deadline_s: float = 20.0) -> None:
    """Cancels what has not ended and waits until it has. Says nothing of a service that is gone."""
    pending = list(job_ids)
    until = time.monotonic() + deadline_s
    asked: set[str] = set()
    try:
        while pending and time.monotonic() < until:
            # The last first: a queued job must not begin because the one before it has ended.
            for job_id in reversed(pending):
                if job_id not in asked and trainer.job(job_id).status not in TERMINAL:
                    trainer.cancel(job_id)
                asked.add(job_id)
            pending = [job_id for job_id in pending if trainer.job(job_id).status not in TERMINAL]
            if pending:
                time.sleep(POLL_S)
    except ServiceError:
        return  # the stack is stopped next, and its runs with it
