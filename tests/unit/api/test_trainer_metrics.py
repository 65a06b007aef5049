"""What the trainer's /metrics says of a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from shared.jobs import CreateJob, File, JobError
from shared.training import Training
from trainer.api.app import create_app
from trainer.api.config import ApiConfig
from trainer.jobs.records import Ingested, JobRecord, NewEvent, Progress
from trainer.jobs.states import Hold
from trainer.jobs.store import Store

NOW = 1_000.0


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


class Served:
    def __init__(self, root: Path) -> None:
        self.clock = Clock()
        self.store = Store(root / "jobs.sqlite3", clock=self.clock)
        self.store.add_file(File(id="file-a", bytes=3, created_at=1, filename="a", purpose="fine-tune"))
        config = ApiConfig(state_dir=root, models_file=root / "models.yaml", api_key="not asked for")
        self.client = TestClient(create_app(config, self.store))

    def create(self, **fields: object) -> JobRecord:
        request = CreateJob.model_validate({"model": "tiny", "training_file": "file-a", **fields})
        return self.store.create_job(request, Training(), seed=1)

    def stepped(self, job: JobRecord, runner: str, step: int, **data: object) -> None:
        event = NewEvent(self.clock.now, "info", f"Step {step}", {"step": step, **data}, step)
        progress = Progress(step, 10, 7 * step, self.clock.now + 30)
        self.store.ingest(job.id, runner, Ingested((event,), (), progress, step))

    def samples(self) -> dict[str, dict[tuple[str, ...], float]]:
        answer = self.client.get("/metrics")
        assert answer.status_code == 200
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                labels = tuple(value for _, value in sorted(sample.labels.items()))
                found.setdefault(sample.name, {})[labels] = sample.value
        return found


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    with made.store:
        yield made


def test_an_empty_service_says_so(served: Served) -> None:
    seen = served.samples()
    assert set(seen["tether_jobs"].values()) == {0}
    assert seen["tether_jobs_held"] == {("judge",): 0, ("owner",): 0}
    assert seen["tether_runners"][()] == 0
    assert seen["tether_job_succeeded_timestamp_seconds"][()] == 0
    assert "tether_jobs_failed_total" not in seen
    assert "tether_job_step" not in seen


def test_a_running_job_shows_its_newest_step_and_its_bound(served: Served) -> None:
    job = served.create(safety={"method": {"type": "adaptive", "staleness": {"max_staleness": 3}}})
    served.store.claim("r", 30)
    served.store.runner_seen("r")
    assert served.samples()["tether_job_staleness_limit_steps"] == {("opportunistic", job.id): 3}
    assert "tether_job_staleness_steps" not in served.samples()
    served.stepped(job, "r", 1, staleness=1, loss=0.5)
    served.stepped(
        job, "r", 2, staleness=3, staleness_s=4.5, loss=0.25, kl=None, overdue=True, wait_s=0.5, judge_s=2.0,
        bases={"own": 12, "none": 4},
    )  # fmt: skip
    served.clock.now += 10
    seen = served.samples()
    assert seen["tether_jobs"][("running",)] == 1
    assert seen["tether_runners"][()] == 1
    assert seen["tether_job_staleness_steps"] == {(job.id,): 3}
    assert seen["tether_job_staleness_seconds"] == {(job.id,): 4.5}
    assert seen["tether_job_overdue"] == {(job.id,): 1}
    assert seen["tether_job_loss"] == {(job.id,): 0.25}
    assert "tether_job_kl" not in seen  # null is no number
    assert seen["tether_job_eta_seconds"] == {(job.id,): 20}
    assert seen["tether_job_last_event_timestamp_seconds"] == {(job.id,): NOW}
    assert seen["tether_job_step_part_seconds"] == {(job.id, "wait"): 0.5}
    assert seen["tether_job_verdict_part_seconds"] == {(job.id, "judge"): 2.0}
    assert seen["tether_job_examples"] == {("own", job.id): 12, ("none", job.id): 4}


def test_the_newest_reading_of_the_canaries_is_shown(served: Served) -> None:
    job = served.create()
    served.store.claim("r", 30)
    served.stepped(job, "r", 1, canary_asr=0.25, canary_over_refusal=None)
    assert "tether_job_canary_alarm" not in served.samples()
    for alarm in ({}, {"alarm": True}, {}):
        data = {"canary": {"step": 1}, **alarm}
        served.store.say(job.id, "r", "warn", "canaries at step 1", data)
        served.store.say(job.id, "r", "info", "something else")
        seen = served.samples()
        assert seen["tether_job_canary_alarm"] == {(job.id,): float(bool(alarm))}
    assert seen["tether_job_canary_asr"] == {(job.id,): 0.25}
    assert "tether_job_canary_over_refusal" not in seen


def test_a_resumed_run_shows_the_step_at_which_it_is(served: Served) -> None:
    job = served.create()
    served.store.claim("r", 30)
    served.stepped(job, "r", 5, loss=0.1)
    served.stepped(job, "r", 3, loss=0.9)
    seen = served.samples()
    assert (seen["tether_job_step"][(job.id,)], seen["tether_job_loss"][(job.id,)]) == (3, 0.9)


def test_failures_are_counted_by_code_and_parked_jobs_are_not_queued(served: Served) -> None:
    for code in ("rank_died", "rank_died", "judge_unavailable"):
        job = served.create()
        served.store.claim("r", 30)
        served.clock.now += 1
        served.store.fail(job.id, "r", JobError(code=code, message="m"))
    parked = served.create()
    served.store.claim("r", 30)
    served.store.requeue(parked.id, "r", Hold.JUDGE, "away", "Parked")
    done = served.create()
    assert served.store.claim("r", 30) is not None
    served.store.succeed(done.id, "r", "ft:x", 7, [], "done")
    seen = served.samples()
    assert seen["tether_jobs_failed_total"] == {("rank_died",): 2, ("judge_unavailable",): 1}
    assert seen["tether_job_failed_timestamp_seconds"] == {
        ("rank_died",): NOW + 2, ("judge_unavailable",): NOW + 3,
    }  # fmt: skip
    assert seen["tether_job_succeeded_timestamp_seconds"][()] == NOW + 3
    assert seen["tether_jobs_held"][("judge",)] == 1
    assert seen["tether_jobs"][("queued",)] == 0
    assert seen["tether_jobs"][("failed",)] == 3
    assert "tether_job_step" not in seen
