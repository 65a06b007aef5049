"""Real API, real runner, real torchrun and DeepSpeed, driven by the stock `openai` client."""

import io
import os
import signal
import tarfile
from pathlib import Path

import openai
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.integration

LONG = {"steps": 100_000, "batch_size": 4, "ranks": 1, "adapter": "full", "checkpoint_every": 20}


def test_the_stock_client_takes_a_job_to_its_end(service):
    service.start_runner()
    with service.openai as client:
        file = client.files.retrieve(service.upload())
        assert file.id in [known.id for known in client.files.list()]
        job = client.fine_tuning.jobs.create(
            model="tiny",
            training_file=file.id,
            suffix="mine",
            seed=3,
            metadata={"team": "a"},
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {"batch_size": 4, "n_epochs": 2}},
            },
            extra_body={
                "safety": {"method": {"type": "fixed_kl", "beta": 0.5}},
                "training": {"ranks": 2, "zero_stage": 2},
            },
        )
        assert job.status == "queued"
        assert client.fine_tuning.jobs.list(metadata={"team": "a"}).data[0].id == job.id
        service.wait_for(job.id, "succeeded")
        done = client.fine_tuning.jobs.retrieve(job.id)
        assert done.fine_tuned_model == f"ft:tiny:mine:{job.id[-6:]}"
        assert done.trained_tokens > 0
        assert done.fine_tuned_model in [model.id for model in client.models.list()]

        events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
        assert len({event.id for event in events}) == len(events)
        steps = [event.data for event in events if event.type == "metrics"]
        assert [data["step"] for data in steps] == list(range(8, 0, -1))
        assert all(data["beta"] == 0.5 for data in steps)
        checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
        assert checkpoints[0].step_number == 8

        csv = client.files.content(done.result_files[0]).text
        assert csv.splitlines()[0].startswith("step,train_loss,")
        assert len(csv.splitlines()) == 9

    with service.http as http:
        raw = http.get(f"/v1/fine_tuning/jobs/{job.id}/artifact.tar").content
    target = service.layout.root / "downloaded"
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        tar.extractall(target, filter="data")
    model = AutoModelForCausalLM.from_pretrained(target / job.id)
    tokenizer = AutoTokenizer.from_pretrained(target / job.id)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "w1 w2"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert model.generate(**prompt, max_new_tokens=3).shape[1] > prompt["input_ids"].shape[1]


def test_the_stock_client_reads_our_errors(service):
    with service.openai as client:
        with pytest.raises(openai.BadRequestError, match="line 1: not valid JSON") as caught:
            client.files.create(file=("a.csv", b"a,b"), purpose="fine-tune")
        assert (caught.value.code, caught.value.param) == ("invalid_training_file", "file")
        with pytest.raises(openai.BadRequestError, match="tether models add nope --path DIR"):
            client.fine_tuning.jobs.create(model="nope", training_file=service.upload())
        with pytest.raises(openai.BadRequestError) as caught:
            client.fine_tuning.jobs.create(
                model="tiny", training_file=service.upload(), extra_body={"training": {"steps": -1}}
            )
        assert caught.value.param == "training.steps"
        with pytest.raises(openai.NotFoundError):
            client.fine_tuning.jobs.retrieve("ftjob-none")
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve("../jobs.sqlite3")


def test_jobs_wait_through_a_restart_of_the_api(service):
    job = service.create()
    before = service.job(job)
    service.children[0].process.kill()
    service.start_api()
    assert service.job(job) == before
    with service.openai as client:
        assert client.fine_tuning.jobs.cancel(job).status == "cancelled"


def test_cancel_of_a_running_job_leaves_nothing_behind(service):
    service.start_runner()
    job = service.create(training={**LONG, "ranks": 2})
    service.until(lambda: len(service.steps(job)) > 25, "25 steps")
    with service.openai as client:
        client.fine_tuning.jobs.cancel(job)
    service.wait_for(job, "cancelled", deadline_s=60)
    run_dir = service.layout.run(job)
    assert service.processes_of(run_dir) == []
    assert not (run_dir / "checkpoints").exists()


def test_pause_and_resume_go_on_where_they_stopped(service):
    service.start_runner()
    job = service.create(training=LONG)
    service.until(lambda: len(service.steps(job)) > 3, "some steps")
    with service.http as http:
        http.post(f"/v1/fine_tuning/jobs/{job}/pause")
        paused = service.until(
            lambda: (found := service.job(job))["safety"]["state"] == "paused" and found, "paused"
        )
        assert (paused["status"], service.processes_of(service.layout.run(job))) == ("queued", [])
        reached = paused["progress"]["step"]
        http.post(f"/v1/fine_tuning/jobs/{job}/resume")
        service.until(lambda: service.job(job)["progress"]["step"] > reached, "further steps")
        http.post(f"/v1/fine_tuning/jobs/{job}/cancel")
    service.wait_for(job, "cancelled")
    steps = service.steps(job)
    assert steps == list(range(1, len(steps) + 1))


def test_a_killed_rank_starts_again_from_its_checkpoint_and_fails_the_job_when_none_is_left(service):
    service.start_runner()
    job = service.create(training={**LONG, "max_restarts": 1})
    run_dir = service.layout.run(job)
    service.until(lambda: len(service.steps(job)) > 25, "25 steps")
    os.kill(worker_of(service, run_dir), signal.SIGKILL)
    service.until(lambda: said(service, job, "going on from the checkpoint at step"), "it goes on")
    reached = len(service.steps(job))
    service.until(lambda: len(service.steps(job)) > reached, "further steps")
    os.kill(worker_of(service, run_dir), signal.SIGKILL)
    failed = service.until(lambda: (found := service.job(job))["status"] == "failed" and found, "failed")
    assert failed["error"]["code"] == "rank_died"
    assert "after 1 restart. The end of its log" in failed["error"]["message"]
    steps = service.steps(job)
    assert steps == list(range(1, len(steps) + 1))
    assert said(service, job, "it starts again from its last checkpoint")
    assert service.processes_of(run_dir) == []


def test_a_killed_runner_takes_its_run_along_and_the_next_one_goes_on(service):
    runner = service.start_runner("--lease-s", "3")
    job = service.create(training=LONG)
    run_dir = service.layout.run(job)
    service.until(lambda: len(service.steps(job)) > 25, "25 steps")
    runner.process.kill()
    runner.process.wait()
    service.until(lambda: service.processes_of(run_dir) == [], "the ranks have ended", 10)
    service.start_runner("--lease-s", "3")
    # What the killed runner had not read yet comes in first; only then what the resumed run trains.
    service.until(lambda: said(service, job, "going on from the checkpoint at step"), "it goes on")
    assert said(service, job, "takes over")
    reached = len(service.steps(job))
    service.until(lambda: len(service.steps(job)) > reached, "further steps")
    steps = service.steps(job)
    assert steps == list(range(1, len(steps) + 1))


def test_a_stopped_runner_queues_its_job_with_a_checkpoint(service):
    runner = service.start_runner()
    job = service.create(training={**LONG, "checkpoint_every": 100_000})
    service.until(lambda: len(service.steps(job)) > 3, "some steps")
    assert runner.stop(60) == 0
    assert service.job(job)["status"] == "queued"
    assert service.processes_of(service.layout.run(job)) == []
    reached = service.steps(job)[-1]
    service.start_runner()
    service.until(lambda: service.steps(job)[-1] > reached, "further steps")
    assert said(service, job, "going on from the checkpoint at step")


def worker_of(service, run_dir):
    """A rank's process: the newest of the run's, whose command line is the worker's own."""
    return max(
        pid
        for pid in service.processes_of(run_dir)
        if b"torch.distributed.run" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


def said(service, job, words):
    with service.openai as client:
        return any(words in event.message for event in client.fine_tuning.jobs.list_events(job, limit=1000))
