"""What the jobs' store says, as Prometheus reads it: at every scrape, from the store alone.

Every API process says the same: take the maximum over processes, not the sum. Jobs are labelled while they
run and not longer, so that the number of series is bounded by that of runners.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from trainer.api.wire import InStore
from trainer.jobs.sqlite.overview import Overview, RunningJob

router = APIRouter(tags=["health"])

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

OF_A_STEP = (
    ("loss", "tether_job_loss", "Loss of the newest step."),
    ("nll", "tether_job_nll", "NLL of the newest step, nats a token."),
    ("kl", "tether_job_kl", "KL(reference || policy) of the newest step, nats a token."),
    ("beta", "tether_job_beta", "Mean beta over the newest step's examples."),
    ("beta_max", "tether_job_beta_highest", "Greatest beta of the newest step's examples."),
    ("risk", "tether_job_risk", "The controller's average over readings."),
    ("staleness", "tether_job_staleness_steps", "Age of the newest reading in use."),
    ("staleness_s", "tether_job_staleness_seconds", "Age of the newest reading in use."),
    ("overdue", "tether_job_overdue", "1 where the newest step trained although the bound was broken."),
    ("step_s", "tether_job_step_seconds", "Duration of the newest step."),
    ("canary_asr", "tether_job_canary_asr", "Share of harmful canary prompts helped with, newest reading."),
    ("canary_over_refusal", "tether_job_canary_over_refusal", "Share of benign canary prompts refused."),
    ("tokens", "tether_job_trained_tokens", "Answer tokens trained so far."),
)
"""(key of the step's event, metric, help). A step that lacks the key, or holds null, gives no sample."""

PARTS_OF_A_STEP = (("wait_s", "wait"), ("generate_s", "generate"))
PARTS_OF_A_VERDICT = (("queue_s", "queue"), ("judge_s", "judge"), ("fold_s", "fold"))


@router.get(
    "/metrics",
    summary="Prometheus metrics of jobs and runners",
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}},
)
def metrics(store: InStore) -> Response:
    return Response(render(store.overview()), headers={"Content-Type": CONTENT_TYPE})


def render(overview: Overview) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Snapshot(overview))
    return generate_latest(registry)


class _Snapshot:
    def __init__(self, overview: Overview) -> None:
        self._overview = overview

    def collect(self) -> Iterable[Metric]:
        seen = self._overview
        yield _labelled(
            "tether_jobs",
            "Jobs by status; `queued` without those that are held.",
            "status",
            {status.value: count for status, count in seen.statuses.items()},
        )
        yield _labelled(
            "tether_jobs_held",
            "Queued jobs that are not to be started; `judge`: parked until the judge answers.",
            "hold",
            {hold.value: count for hold, count in seen.held.items()},
        )
        failures = CounterMetricFamily("tether_jobs_failed", "Jobs that failed.", labels=["code"])
        for code, count in seen.failures.items():
            failures.add_metric([code], count)
        yield failures
        yield _labelled(
            "tether_job_failed_timestamp_seconds", "When a job last failed so.", "code", seen.last_failure
        )
        yield GaugeMetricFamily(
            "tether_job_succeeded_timestamp_seconds",
            "When a job last succeeded; 0: none has.",
            value=seen.last_success,
        )
        yield GaugeMetricFamily("tether_runners", "Runners alive.", value=seen.runners)
        yield from _of_running(seen)


def _of_running(seen: Overview) -> Iterable[Metric]:
    jobs = seen.running
    yield _by_job("tether_job_step", "Steps done.", jobs, [job.step for job in jobs])
    yield _by_job("tether_job_steps", "Steps in all.", jobs, [job.steps for job in jobs])
    left = [
        None if job.estimated_finish is None else max(0.0, job.estimated_finish - seen.now) for job in jobs
    ]
    yield _by_job("tether_job_eta_seconds", "Expected time to the end.", jobs, left)
    yield _by_job("tether_job_restarts", "Starts after a rank died.", jobs, [job.restarts for job in jobs])
    yield _by_job(
        "tether_job_last_event_timestamp_seconds",
        "When the run was last heard of.",
        jobs,
        [job.last_event for job in jobs],
    )
    limit = GaugeMetricFamily(
        "tether_job_staleness_limit_steps", "K; the bound on staleness.", labels=["job_id", "clock"]
    )
    for job in jobs:
        if job.bound is not None:
            limit.add_metric([job.id, job.bound.clock.value], job.bound.max_staleness)
    yield limit
    yield _by_job(
        "tether_job_canary_alarm",
        "1 where the newest reading of the canary prompts is beyond its limits, or too much of it unread.",
        jobs,
        [job.canary_alarm for job in jobs],
    )
    for key, name, text in OF_A_STEP:
        yield _by_job(name, text, jobs, [job.metrics.get(key) for job in jobs])
    yield _parts(
        "tether_job_step_part_seconds",
        "Of the newest step: waiting for the judge, generating what it reads.",
        jobs,
        PARTS_OF_A_STEP,
    )
    yield _parts(
        "tether_job_verdict_part_seconds",
        "Means over the verdicts that came with the newest step: waiting for a worker, being judged,"
        " waiting to be used.",
        jobs,
        PARTS_OF_A_VERDICT,
    )
    bases = GaugeMetricFamily(
        "tether_job_examples",
        "The newest step's examples by what their beta rests on.",
        labels=["job_id", "basis"],
    )
    for job in jobs:
        for basis, count in (job.metrics.get("bases") or {}).items():
            bases.add_metric([job.id, basis], count)
    yield bases


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for of, value in values.items():
        family.add_metric([of], value)
    return family


def _by_job(
    name: str, text: str, jobs: Iterable[RunningJob], values: Iterable[float | bool | None]
) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["job_id"])
    for job, value in zip(jobs, values, strict=True):
        if value is not None:
            family.add_metric([job.id], float(value))
    return family


def _parts(name: str, text: str, jobs: Iterable[RunningJob], parts: Iterable[tuple[str, str]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["job_id", "part"])
    for job in jobs:
        for key, part in parts:
            value = job.metrics.get(key)
            if value is not None:
                family.add_metric([job.id, part], float(value))
    return family
