"""A job and a stream of judgements, while the judge is scaled and every container is killed once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from shared.jobs import CreateJob
from tests import waiting
from tests.containers.clients import Judge, Stream, Trainer
from tests.containers.engine import Stack
from tests.structure.compose_file import services
from trainer.demo.graded import graded_pairs
from trainer.demo.world import mixture

until = partial(waiting.until, every_s=0.5)
"""Some conditions are a command in a container."""

WORKER = "judge-worker-cpu"
RUNNER = "runner-cpu"
LASTING = ["redis", "judge-api", "trainer-api", "proxy", WORKER, RUNNER]
"""All but tiny-models, which has ended."""

MODELS_S = 2400
"""Making the tiny models takes a minute on two free cores, and far longer on busy ones."""
STEP_S = 900
"""Longest between two steps: a killed runner's lease must run out and torch be loaded again."""
JOB_S = 3600
PATIENCE_S = 300


@pytest.fixture(scope="module")
def trainer(stack: Stack, secrets: Path) -> Iterator[Trainer]:
    trainer = Trainer(stack.trainer_port, (secrets / "trainer_api_key").read_text(), PATIENCE_S)
    yield trainer
    trainer.close()


@pytest.fixture(scope="module")
def judge(stack: Stack, secrets: Path) -> Iterator[Judge]:
    judge = Judge(stack.judge_port, (secrets / "judge_key").read_text(), PATIENCE_S)
    yield judge
    judge.close()


def test_it_comes_up_by_itself(
    stack: Stack, trainer: Trainer, judge: Judge, figures: dict[str, float]
) -> None:
    def mark(what: str) -> None:
        figures[f"{what}_after_s"] = time.monotonic() - figures["began"]

    until(lambda: trainer.now("/readyz"), "the trainer's API answers", PATIENCE_S)
    mark("trainer_api")
    until(lambda: judge.now("/readyz"), "the judge's API answers", PATIENCE_S)
    mark("judge_api")
    until(lambda: (trainer.now("/readyz") or {}).get("runners"), "a runner is alive", PATIENCE_S)
    mark("runner")
    until(lambda: judge.taking(), "a judge worker takes items", MODELS_S)
    mark("judge_worker")
    [known] = [model["id"] for model in trainer.ask("GET", "/v1/models")["data"]]
    assert known == "tether-tiny"


def test_the_images_are_as_large_as_they_are(stack: Stack, figures: dict[str, float]) -> None:
    for service in {"redis", "judge-api", "proxy", WORKER, RUNNER}:
        image = services("cpu")[service]["image"]
        size = int(stack.containers("image", "inspect", image, "--format", "{{.Size}}"))
        figures[f"{image}_mb"] = size / 1e6
    assert figures["tether/service:dev_mb"] < figures["tether/judge-cpu:dev_mb"] / 2  # it holds no torch


@pytest.mark.parametrize("service", LASTING)
def test_a_container_is_healthy_and_has_little_power(stack: Stack, service: str) -> None:
    [name] = stack.of(service)
    check = services("cpu")[service]["healthcheck"]["test"]
    assert check[0] == "CMD"
    until(lambda: stack.containers("exec", name, *check[1:]) is not None, "healthy", PATIENCE_S)
    assert stack.containers("exec", name, "id", "-u").strip() != "0"
    status = stack.containers("exec", name, "cat", "/proc/self/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    said = stack.containers("exec", name, "sh", "-c", "touch /written 2>&1 || echo refused")
    assert "Read-only" in said
    assert "refused" in said


@pytest.mark.parametrize(("port", "path"), [("trainer", "/v1/models"), ("judge", "/v1/judgements/x")])
def test_nobody_gets_in_without_a_key(stack: Stack, port: str, path: str) -> None:
    number = stack.trainer_port if port == "trainer" else stack.judge_port
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        assert httpx.get(f"http://127.0.0.1:{number}{path}", headers=headers).status_code == 401
    assert httpx.get(f"http://127.0.0.1:{number}/metrics").status_code == 404  # for Prometheus, inside


def test_nothing_is_lost_while_everything_is_killed_once(
    stack: Stack, trainer: Trainer, judge: Judge, figures: dict[str, float]
) -> None:
    rows, _ = mixture(96, 0.1, seed=0)
    request = CreateJob.model_validate(
        {
            "model": "tether-tiny",
            "training_file": trainer.upload(rows),
            "seed": 0,
            "training": {"steps": 160, "batch_size": 8, "checkpoint_every": 10, "max_restarts": 5},
        }
    )
    body = request.model_dump(mode="json", exclude_unset=True)
    job_id = trainer.ask("POST", "/v1/fine_tuning/jobs", json=body)["id"]
    began = time.monotonic()
    # A reader of its own: the thread asks while this one does.
    outside = Judge(stack.judge_port, judge.key, PATIENCE_S)
    pairs = [(pair.prompt, pair.response) for pair in graded_pairs(2400, seed=1)]

    def two_steps_more() -> None:
        at = trainer.step(job_id)
        until(lambda: trainer.step(job_id) >= at + 2, f"two steps after step {at}", STEP_S)

    killed = []
    with Stream(outside, pairs) as stream:
        two_steps_more()
        stack.scale(WORKER, 3)
        until(lambda: judge.taking() == 3, "three workers take items", PATIENCE_S)
        for service in LASTING:
            two_steps_more()
            stack.kill(stack.of(service)[0])
            killed.append((service, trainer.job(job_id)["status"]))
        two_steps_more()
        stack.scale(WORKER, 1)
        until(lambda: judge.taking() == 1, "one worker is left", PATIENCE_S)
        figures["steps_at_the_last_kill"] = trainer.step(job_id)
        assert [status for _, status in killed] == ["running"] * len(LASTING), killed

        def ended() -> str | None:
            status = str(trainer.job(job_id)["status"])
            return status if status not in ("queued", "running", "validating_files") else None

        assert until(ended, "the job ends", JOB_S) == "succeeded", trainer.job(job_id)["error"]
        figures["job_s"] = time.monotonic() - began
    outside.close()
    assert stream.failure is None

    # One verdict an id: each is scored, and the same when it is read or submitted again.
    ids = stream.acknowledged
    figures["judgements_from_outside"] = len(ids)
    assert len(ids) > 50

    def all_done() -> dict[str, dict[str, object]] | None:
        found = judge.verdicts(ids)
        return found if all(verdict["status"] != "pending" for verdict in found.values()) else None

    first = until(all_done, "every acknowledged judgement is done", PATIENCE_S)
    assert sorted(first) == sorted(ids)
    assert {verdict["status"] for verdict in first.values()} == {"scored"}
    texts = dict(zip((f"outside-{n}" for n in range(len(pairs))), pairs, strict=True))
    again = [{"id": i, "prompt": texts[i][0], "response": texts[i][1]} for i in ids[:200]]
    judge.submit(again)
    assert judge.verdicts(ids) == first

    # The run's own log, replayed from its verdicts: every beta of every step, over all restarts.
    [runner] = stack.of(RUNNER)
    stack.containers("exec", runner, "tether", "replay", f"/state/runs/{job_id}", timeout_s=600)
    artifact = trainer.ask("GET", f"/v1/fine_tuning/jobs/{job_id}/artifact")
    assert any(file["name"].endswith(".safetensors") for file in artifact["data"]), artifact


def test_it_is_all_there_after_down_and_up(
    stack: Stack, trainer: Trainer, judge: Judge, figures: dict[str, float]
) -> None:
    before = trainer.ask("GET", "/v1/fine_tuning/jobs")["data"]
    [verdict] = judge.verdicts(["outside-0"]).values()
    stack.compose("down", timeout_s=600)
    began = time.monotonic()
    stack.compose("up", "-d", "--no-build")
    until(lambda: judge.taking(), "a judge worker takes items", PATIENCE_S)
    until(lambda: (trainer.now("/readyz") or {}).get("runners"), "a runner is alive", PATIENCE_S)
    figures["second_start_s"] = time.monotonic() - began
    assert trainer.ask("GET", "/v1/fine_tuning/jobs")["data"] == before
    assert list(judge.verdicts(["outside-0"]).values()) == [verdict]
