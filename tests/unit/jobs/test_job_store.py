import pytest

from shared.jobs import TERMINAL, CreateJob, File, JobError, JobStatus, SafetyState
from shared.training import Training
from trainer.jobs.records import Ingested, NewCheckpoint, NewEvent, Progress
from trainer.jobs.states import MOVES, Hold, IllegalTransition, LeaseLost, UnknownId, Wanted, check_move
from trainer.jobs.store import FileInUse, Store
from trainer.jobs.view import job_view


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path, clock):
    with Store(tmp_path / "jobs.sqlite3", clock=clock) as opened:
        opened.add_file(file("file-a"))
        yield opened


def file(identifier, purpose="fine-tune"):
    return File(id=identifier, bytes=3, created_at=1, filename="a.jsonl", purpose=purpose)


def create(store, **fields):
    request = CreateJob.model_validate({"model": "tiny", "training_file": "file-a", **fields})
    return store.create_job(request, Training(), seed=1)


def metrics(step, loss):
    return NewEvent(
        created_at=5.0, level="info", message=f"Step {step}", data={"step": step, "loss": loss}, step=step
    )


def ingested(*events, checkpoints=(), offset=0):
    last = max((event.step for event in events if event.step), default=None)
    progress = None if last is None else Progress(last, 10, 7 * last, 99.0)
    return Ingested(events, tuple(checkpoints), progress, offset)


def test_every_move_that_is_not_in_the_table_is_refused():
    for now in JobStatus:
        for new in JobStatus:
            if new in MOVES[now]:
                check_move("job", now, new)
            else:
                with pytest.raises(IllegalTransition, match=now.value):
                    check_move("job", now, new)
    assert all(not MOVES[status] for status in TERMINAL)


def test_jobs_are_claimed_in_the_order_of_their_creation(store):
    first, second = create(store), create(store)
    assert store.claim("r1", 30).id == first.id
    assert store.claim("r2", 30).id == second.id
    assert store.claim("r3", 30) is None


def test_a_job_whose_runner_went_silent_is_claimed_again(store, clock):
    job = create(store)
    store.claim("r1", 30)
    clock.now += 29
    assert store.heartbeat(job.id, "r1", 30) is Wanted.RUN
    clock.now += 29
    assert store.claim("r2", 30) is None
    clock.now += 2
    assert store.claim("r2", 30).id == job.id
    for write in (
        lambda: store.heartbeat(job.id, "r1", 30),
        lambda: store.say(job.id, "r1", "info", "x"),
        lambda: store.ingest(job.id, "r1", ingested(metrics(1, 0.5))),
        lambda: store.fail(job.id, "r1", JobError(code="c", message="m")),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert store.heartbeat(job.id, "r2", 30) is Wanted.RUN


def test_a_job_taken_over_keeps_its_owners_wish(store, clock):
    job = create(store)
    store.claim("r1", 30)
    store.cancel(job.id)
    clock.now += 31
    assert store.claim("r2", 30).wanted is Wanted.CANCEL


def test_cancel_ends_a_queued_job_at_once_and_a_running_one_through_its_runner(store):
    queued, running = create(store), create(store)
    assert store.cancel(queued.id).status is JobStatus.CANCELLED
    store.claim("r", 30)
    assert store.cancel(running.id).status is JobStatus.RUNNING
    assert store.heartbeat(running.id, "r", 30) is Wanted.CANCEL
    store.cancelled(running.id, "r")
    assert store.job(running.id).status is JobStatus.CANCELLED
    with pytest.raises(IllegalTransition, match="has ended: cancelled"):
        store.cancel(running.id)


def test_a_paused_job_is_not_claimed_until_it_is_resumed(store):
    job = create(store)
    paused = store.pause(job.id)
    assert (paused.status, paused.hold) == (JobStatus.QUEUED, Hold.OWNER)
    assert job_view(paused).safety.state is SafetyState.PAUSED
    assert store.claim("r", 30) is None
    assert job_view(store.resume(job.id)).safety.state is SafetyState.ACTIVE
    assert store.claim("r", 30).id == job.id


def test_a_running_job_is_asked_to_pause_and_a_second_thought_takes_it_back(store):
    job = create(store)
    store.claim("r", 30)
    store.pause(job.id)
    assert store.heartbeat(job.id, "r", 30) is Wanted.PAUSE
    store.resume(job.id)
    assert store.heartbeat(job.id, "r", 30) is Wanted.RUN


def test_a_job_that_waits_for_the_judge_is_released_once(store):
    job = create(store)
    store.claim("r", 30)
    store.requeue(job.id, "r", Hold.JUDGE, "no judge", "Parked: no judge")
    assert [held.id for held in store.held_by_judge()] == [job.id]
    assert job_view(store.job(job.id)).safety.reason == "no judge"
    store.release(job.id, "The judge is back")
    store.release(job.id, "The judge is back")
    assert [e.message for e in store.events(job.id).data].count("The judge is back") == 1
    assert store.claim("r", 30).id == job.id


def test_a_step_that_was_trained_again_is_listed_once_with_its_last_figures(store):
    job = create(store)
    store.claim("r", 30)
    store.ingest(job.id, "r", ingested(metrics(1, 0.5), metrics(2, 0.4), offset=10))
    store.ingest(job.id, "r", ingested(metrics(2, 0.3), metrics(3, 0.2), offset=20))
    assert store.metrics(job.id) == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.3},
        {"step": 3, "loss": 0.2},
    ]
    assert sum(event.type == "metrics" for event in store.events(job.id).data) == 3
    record = store.job(job.id)
    assert (record.step, record.steps, record.trained_tokens, record.events_offset) == (3, 10, 21, 20)


def test_events_page_in_both_directions_without_gaps_or_repeats(store):
    job = create(store)
    store.claim("r", 30)
    store.ingest(job.id, "r", ingested(*(metrics(step, 0.1) for step in range(1, 8))))
    for order in ("desc", "asc"):
        seen, after = [], None
        while True:
            page = store.events(job.id, after=after, limit=3, order=order)
            seen += page.data
            if not page.has_more:
                break
            after = page.data[-1].id
        assert len(seen) == len({event.id for event in seen}) == 8
        steps = [event.data["step"] for event in seen if event.type == "metrics"]
        assert steps == sorted(steps, reverse=order == "desc")


def test_a_cursor_of_another_job_is_no_cursor(store):
    one, other = create(store), create(store)
    foreign = store.events(other.id).data[0].id
    with pytest.raises(UnknownId, match="event"):
        store.events(one.id, after=foreign)


def test_jobs_are_listed_newest_first_and_by_metadata(store):
    a = create(store, metadata={"team": "x", 'od"d': "1"})
    b = create(store, metadata={"team": "y"})
    c = create(store)
    assert [job.id for job in store.jobs(limit=2).data] == [c.id, b.id]
    assert store.jobs(limit=2).has_more
    assert [job.id for job in store.jobs(after=b.id).data] == [a.id]
    assert [job.id for job in store.jobs(metadata={"team": "x", 'od"d': "1"}).data] == [a.id]
    assert [job.id for job in store.jobs(without_metadata=True).data] == [c.id]


def test_a_file_is_kept_while_a_job_needs_it(store):
    job = create(store)
    with pytest.raises(FileInUse, match=job.id):
        store.delete_file("file-a")
    store.cancel(job.id)
    store.delete_file("file-a")
    with pytest.raises(UnknownId):
        store.file("file-a")
    with pytest.raises(UnknownId, match="file-a") as caught:
        create(store)
    assert caught.value.param == "training_file"


def test_everything_survives_a_restart(store, tmp_path, clock):
    job = create(store, suffix="mine", safety={"method": "sft"})
    store.claim("r", 30)
    read = ingested(
        metrics(1, 0.5), checkpoints=[NewCheckpoint(4.0, 1, "checkpoints/1", {"step": 1})], offset=9
    )
    store.ingest(job.id, "r", read)
    before = store.job(job.id), store.events(job.id), store.checkpoints(job.id), store.files()
    store.close()
    with Store(tmp_path / "jobs.sqlite3", clock=clock) as again:
        assert (again.job(job.id), again.events(job.id), again.checkpoints(job.id), again.files()) == before
        assert again.checkpoints(job.id).data[0].fine_tuned_model_checkpoint.startswith("ft:tiny:mine:")
        again.succeed(job.id, "r", "ft:tiny:mine:1", 7, [file("file-r", "fine-tune-results")], "done")
        done = again.job(job.id)
        assert (done.status, done.result_files, done.runner) == (JobStatus.SUCCEEDED, ("file-r",), None)


def test_only_runners_seen_lately_are_alive(store, clock):
    store.runner_seen("r1")
    clock.now += 20
    store.runner_seen("r2")
    assert store.runners_alive() == 2
    clock.now += 20
    assert store.runners_alive() == 1
    store.runner_gone("r2")
    assert store.runners_alive() == 0
