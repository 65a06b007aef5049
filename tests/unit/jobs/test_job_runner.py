"""The runner against runs that are played by a script, through the Launcher protocol."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import httpx
import pytest

from shared.jobs import CreateJob, File, JobStatus
from shared.training import Training
from trainer.jobs.judge_health import JudgeAddress
from trainer.jobs.layout import Layout
from trainer.jobs.runner import Runner, RunnerConfig
from trainer.jobs.states import Hold
from trainer.jobs.store import Store
from trainer.jobs.view import job_view
from trainer.models.registry import BaseEntry, PathSource, register
from trainer.training.run_spec import Canaries, read_spec


class Play:
    """A run: `acts` are done one a poll; it then ends, or waits to be told to."""

    def __init__(self, run_dir, acts, status, waits):
        self.run_dir, self.acts, self.status, self.waits = run_dir, list(acts), status, waits
        self.stopped = self.killed = False

    def poll(self):
        if self.killed:
            return -9
        if self.acts:
            self.acts.pop(0)(self)
            return None
        if self.waits and not self.stopped:
            return None
        return self.status

    def stop(self):
        self.stopped = True
        if self.waits:
            outcome("stopped")(self)

    def kill(self):
        self.killed = True


@dataclass
class Script:
    acts: list[Callable] = field(default_factory=list)
    status: int = 0
    waits: bool = False


class Stage:
    devices = 0
    nodes = 1

    def __init__(self):
        self.scripts: list[Script] = []
        self.started: list[Play] = []

    def start(self, run_dir, ranks, nnodes):
        script = self.scripts.pop(0)
        self.started.append(Play(run_dir, script.acts, script.status, script.waits))
        return self.started[-1]


def metrics(step, **more):
    line = {
        "kind": "metrics", "ts": 10.0, "step": step, "steps": 9, "loss": 0.5, "nll": 0.4, "kl": 0.1,
        "beta": 0.3, "risk": 0.2, "staleness": 1, "wait_s": 0.0, "step_s": 1.0, "learning_rate": 0.1,
        "tokens": 7 * step, "eta_s": 5.0, **more,
    }  # fmt: skip
    return write("events.jsonl", json.dumps(line) + "\n")


def write(name, text):
    def act(play):
        with (play.run_dir / name).open("a") as file:
            file.write(text)

    return act


def outcome(status, step=2, error=None, published_step=None):
    def act(play):
        body = {
            "status": status,
            "error": error,
            "step": step,
            "trained_tokens": 7 * step,
            "artifact": "artifact" if status == "succeeded" else None,
            "published_step": published_step,
        }
        (play.run_dir / "outcome.json").write_text(json.dumps(body))

    return act


def do(function):
    return lambda play: function()


class World:
    def __init__(self, root, judge_alive=1):
        self.layout = Layout(root).create()
        self.judge_alive = judge_alive
        self.forgotten: list[str] = []
        base = root / "base"
        base.mkdir()
        (base / "model.safetensors").touch()
        entry = BaseEntry(source=PathSource(path=base), context_length=64, lora_targets=("q",))
        register(self.layout.models, "tiny", entry)
        self.store = Store(self.layout.database)
        self.layout.file("file-a").write_text("{}")
        self.store.add_file(File(id="file-a", bytes=2, created_at=1, filename="a.jsonl", purpose="fine-tune"))
        self.stage = Stage()
        self.runner = self.new_runner()

    def new_runner(self, **changes):
        judge = JudgeAddress("http://judge", transport=httpx.MockTransport(self._answer))
        config = RunnerConfig(
            self.layout, self.layout.models, judge, "demo-v1", poll_s=0.0, judge_poll_s=0.0, **changes
        )
        return Runner(config, self.store, self.stage)

    def _answer(self, request):
        if request.method == "DELETE":
            self.forgotten.append(request.url.params["group"])
            return httpx.Response(200, json={})
        if self.judge_alive is None:
            raise httpx.ConnectError("refused", request=request)
        return httpx.Response(200, json={"components": {"workers": {"alive": self.judge_alive}}})

    def job(self, **fields):
        request = CreateJob.model_validate({"model": "tiny", "training_file": "file-a", **fields})
        return self.store.create_job(request, Training.model_validate(fields.get("training", {})), 1).id

    def messages(self, job):
        return [event.message for event in self.store.events(job, limit=100, order="asc").data]


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    with made.store:
        yield made


def test_a_run_that_ends_well(world):
    job = world.job()
    world.stage.scripts = [Script([metrics(1), metrics(2), outcome("succeeded")])]
    assert world.runner.run_one()
    done = world.store.job(job)
    assert done.status is JobStatus.SUCCEEDED
    assert done.fine_tuned_model == f"ft:tiny::{job[-6:]}"
    assert (done.trained_tokens, done.training.ranks) == (14, 1)
    csv, jsonl = (world.layout.file(name).read_text() for name in done.result_files)
    assert csv.splitlines()[:2] == [
        "step,train_loss,nll,kl,beta,risk,staleness,wait_s,step_s,learning_rate,tokens",
        "1,0.5,0.4,0.1,0.3,0.2,1,0.0,1.0,0.1,7",
    ]
    assert [json.loads(line)["step"] for line in jsonl.splitlines()] == [1, 2]
    spec = read_spec(world.layout.run(job) / "run.json")
    assert spec.judge is not None
    assert spec.judge.url == "http://judge"
    assert not world.runner.run_one()


def test_a_dead_rank_starts_again_and_its_repeated_steps_count_once(world):
    job = world.job(training={"max_restarts": 1})
    half = write("events.jsonl", '{"kind": "met')
    world.stage.scripts = [
        Script([metrics(1), metrics(2, loss=0.9), half], status=1),
        Script([metrics(2, loss=0.8), metrics(3), outcome("succeeded", 3)]),
    ]
    world.runner.run_one()
    assert world.store.job(job).status is JobStatus.SUCCEEDED
    assert [(row["step"], row["loss"]) for row in world.store.metrics(job)] == [(1, 0.5), (2, 0.8), (3, 0.5)]
    assert any("lost a rank (exit status 1); it starts again" in said for said in world.messages(job))
    assert not any("cannot be read" in said for said in world.messages(job))


def test_a_rank_that_keeps_dying_fails_the_job_with_the_end_of_its_log(world):
    job = world.job(training={"max_restarts": 1})
    died = Script([write("worker.log", "boom: out of memory\n")], status=-9)
    world.stage.scripts = [died, died]
    world.runner.run_one()
    done = world.store.job(job)
    assert (done.status, done.error.code) == (JobStatus.FAILED, "rank_died")
    assert "exit status -9" in done.error.message
    assert "boom: out of memory" in done.error.message
    assert world.forgotten == [job]


def test_a_stale_outcome_is_not_taken_for_this_runs(world):
    job = world.job(training={"max_restarts": 1})
    world.stage.scripts = [Script([outcome("stopped")], status=1), Script([], status=1)]
    world.runner.run_one()
    assert world.store.job(job).error.code == "rank_died"
    assert "lost a rank" in world.store.job(job).error.message


def test_a_run_that_fails_says_why(world):
    job = world.job(safety={"method": "sft"})
    error = {"code": "invalid_training_file", "message": "line 3: too long"}
    world.stage.scripts = [Script([outcome("failed", error=error)], status=1)]
    world.runner.run_one()
    assert world.store.job(job).error.model_dump() == {**error, "param": None}


def test_cancel_stops_the_run_and_leaves_no_weights(world):
    job = world.job()

    def weights(play):
        (play.run_dir / "checkpoints/1").mkdir(parents=True)

    world.stage.scripts = [Script([weights, metrics(1), do(lambda: world.store.cancel(job))], waits=True)]
    world.runner.run_one()
    assert world.stage.started[0].stopped
    assert world.store.job(job).status is JobStatus.CANCELLED
    assert not (world.layout.run(job) / "checkpoints").exists()
    assert world.forgotten == [job]


def test_a_run_that_does_not_heed_the_cancel_is_killed(world):
    job = world.job()
    runner = world.new_runner(grace_s=0.0)
    world.stage.scripts = [Script([do(lambda: world.store.cancel(job))], waits=True)]
    deaf = world.stage.start

    def start(run_dir, ranks, nnodes):
        play = deaf(run_dir, ranks, nnodes)
        play.stop = lambda: None
        return play

    world.stage.start = start
    runner.run_one()
    assert world.stage.started[0].killed
    assert world.store.job(job).status is JobStatus.CANCELLED


def test_pause_stops_with_a_checkpoint_and_resume_goes_on(world):
    job = world.job()
    world.stage.scripts = [
        Script([metrics(1), do(lambda: world.store.pause(job))], waits=True),
        Script([metrics(2), outcome("succeeded")]),
    ]
    world.runner.run_one()
    paused = world.store.job(job)
    assert (paused.status, paused.hold) == (JobStatus.QUEUED, Hold.OWNER)
    assert not world.runner.run_one()
    world.store.resume(job)
    world.runner.run_one()
    assert world.store.job(job).status is JobStatus.SUCCEEDED
    assert [row["step"] for row in world.store.metrics(job)] == [1, 2]


def test_a_parked_job_goes_on_by_itself_when_a_worker_is_alive(world):
    job = world.job()
    error = {"code": "judge_unavailable", "message": "no verdict for 60 s"}

    def judge_dies():
        world.judge_alive = 0

    world.stage.scripts = [
        Script([metrics(1), do(judge_dies), outcome("parked", error=error)]),
        Script([outcome("succeeded")]),
    ]
    world.runner.run_one()
    parked = world.store.job(job)
    assert (parked.status, parked.hold, parked.reason) == (
        JobStatus.QUEUED,
        Hold.JUDGE,
        "no verdict for 60 s",
    )
    assert not world.runner.run_one()
    world.judge_alive = 1
    assert world.runner.run_one()
    assert world.store.job(job).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize(
    ("overdue", "status", "hold"),
    [("park", JobStatus.QUEUED, Hold.JUDGE), ("abort", JobStatus.FAILED, None)],
)
def test_a_judge_that_is_away_at_the_start(world, overdue, status, hold):
    world.judge_alive = None
    job = world.job(safety={"method": {"type": "adaptive", "staleness": {"overdue": overdue}}})
    world.runner.run_one()
    found = world.store.job(job)
    assert (found.status, found.hold) == (status, hold)
    assert "the judge at http://judge does not answer" in " ".join(world.messages(job))
    assert world.stage.started == []


def test_a_job_that_asks_no_judge_starts_without_one(world):
    world.judge_alive = None
    job = world.job(safety={"method": "sft"})
    world.stage.scripts = [Script([outcome("succeeded")])]
    world.runner.run_one()
    assert world.store.job(job).status is JobStatus.SUCCEEDED
    assert read_spec(world.layout.run(job) / "run.json").judge is None


def test_a_runner_that_stops_queues_its_job_for_the_next_one(world):
    job = world.job()
    world.stage.scripts = [
        Script([metrics(1), do(world.runner.stop)], waits=True),
        Script([outcome("succeeded")]),
    ]
    world.runner.run_one()
    queued = world.store.job(job)
    assert (queued.status, queued.hold) == (JobStatus.QUEUED, None)
    world.new_runner().run_one()
    assert world.store.job(job).status is JobStatus.SUCCEEDED


def test_a_runner_that_lost_its_lease_kills_its_run_and_says_nothing_more(world):
    job = world.job()

    def another_takes_over():
        world.store._clock = lambda: 1e12
        assert world.store.claim("other", 1e6).id == job

    world.stage.scripts = [Script([do(another_takes_over), metrics(1)], waits=True)]
    world.runner.run_one()
    assert world.stage.started[0].killed
    assert world.store.job(job).runner == "other"
    assert world.store.metrics(job) == []


@pytest.mark.parametrize(
    ("spoil", "code", "message"),
    [
        (lambda w: w.layout.models.unlink(), "invalid_model", "tether models add tiny --path DIR"),
        (lambda w: w.layout.file("file-a").unlink(), "not_found", "file-a"),
        (lambda w: (w.layout.root / "base/model.safetensors").unlink(), "invalid_model", "holds no weights"),
    ],
)
def test_what_went_missing_since_the_job_was_created_fails_it(world, spoil, code, message):
    job = world.job(safety={"method": "sft"})
    spoil(world)
    world.runner.run_one()
    done = world.store.job(job)
    assert (done.status, done.error.code) == (JobStatus.FAILED, code)
    assert message in done.error.message


def test_more_ranks_than_accelerators_are_refused(world):
    world.stage.devices = 1
    job = world.job(training={"ranks": 2}, safety={"method": "sft"})
    world.runner.run_one()
    assert "this machine has 1 accelerators" in world.store.job(job).error.message


def test_more_machines_than_the_operator_gives_are_refused(world):
    job = world.job(training={"nnodes": 2}, safety={"method": "sft"})
    world.runner.run_one()
    said = world.store.job(job).error.message
    assert "training.nnodes is 2, but this runner has 1" in said
    assert "--rdzv-endpoint" in said


def test_the_loop_ends_when_told(world):
    thread = threading.Thread(target=world.runner.run_forever)
    thread.start()
    world.runner.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert world.store.runners_alive() == 0


@pytest.mark.parametrize("trusted", [True, False])
def test_scores_of_a_file_count_and_need_no_judge_only_where_the_operator_says_so(world, trusted):
    method = {"type": "adaptive", "sources": ["target"]}
    job = world.job(safety={"method": method})
    config = replace(world.runner._config, judge=None, trust_file_scores=trusted)
    world.stage.scripts = [Script([metrics(1), outcome("succeeded")])]
    Runner(config, world.store, world.stage).run_one()
    if not trusted:
        assert "this service has none" in world.store.job(job).error.message
        return
    assert world.store.job(job).status is JobStatus.SUCCEEDED
    spec = read_spec(world.layout.run(job) / "run.json")
    assert (spec.trust_file_scores, spec.judge) == (True, None)


def test_the_operators_canaries_watch_every_method(world, tmp_path):
    canaries = Canaries(file=tmp_path / "canaries.jsonl")
    runner = world.new_runner(canaries=canaries)
    job = world.job(safety={"method": "sft"})
    world.stage.scripts = [Script([metrics(1), outcome("succeeded", 8, published_step=4)])]
    assert runner.run_one()
    spec = read_spec(world.layout.run(job) / "run.json")
    assert spec.canaries == canaries
    assert spec.judge is not None
    safety = job_view(world.store.job(job)).safety
    assert safety.state == "active"
    assert safety.reason is not None
    assert safety.reason.startswith("the model is the checkpoint of step 4 of 8: the canaries were beyond")


def test_without_a_judge_for_its_canaries_no_job_begins(world, tmp_path):
    world.judge_alive = 0
    runner = world.new_runner(canaries=Canaries(file=tmp_path / "canaries.jsonl"))
    job = world.job(safety={"method": "sft"})
    runner.run_one()
    assert world.store.job(job).hold is Hold.JUDGE
    assert world.stage.started == []


@pytest.mark.parametrize("overdue", ["park", "fail_closed", "hold"])
def test_nor_one_whose_scores_are_in_its_file_or_that_needs_no_readings(world, tmp_path, overdue):
    world.judge_alive = 0
    canaries = Canaries(file=tmp_path / "canaries.jsonl")
    runner = world.new_runner(canaries=canaries, trust_file_scores=True)
    method = {"type": "adaptive", "sources": ["target"], "staleness": {"overdue": overdue}}
    job = world.job(safety={"method": method})
    runner.run_one()
    assert world.store.job(job).hold is Hold.JUDGE
    assert world.stage.started == []


def test_the_gate_fails_a_job_and_what_the_judge_still_holds_is_cancelled(world, tmp_path):
    runner = world.new_runner(canaries=Canaries(file=tmp_path / "canaries.jsonl"))
    job = world.job(safety={"method": "sft"})
    error = {"code": "canary_gate", "message": "none within"}
    world.stage.scripts = [Script([metrics(1), outcome("failed", error=error)])]
    runner.run_one()
    done = world.store.job(job)
    assert (done.status, done.error.code, done.fine_tuned_model) == (JobStatus.FAILED, "canary_gate", None)
    assert world.forgotten == [job, f"{job}.canary"]
