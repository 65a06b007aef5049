"""A job whose judge is away, through the real services: it parks with its cause and goes on by itself."""

import pytest

from shared.processes import start_module

pytestmark = pytest.mark.integration

METHOD = {
    "type": "adaptive",
    "sources": ["target", {"type": "policy", "samples_per_step": 2, "max_new_tokens": 2}],
    "staleness": {"max_staleness": 2, "deadline_s": 3, "overdue": "park"},
}


@pytest.fixture
def judge(redis_server, redis_prefix, tmp_path):
    """`start(port)` and `kill()` of an API and a worker."""
    env = {"REDIS_URL": redis_server.url, "TETHER_JUDGE_KEY_PREFIX": redis_prefix, "OMP_NUM_THREADS": "1"}

    class Judge:
        children = ()
        url = ""

        def start(self, port=0, *more):
            api = start_module("judge_service.cli", ["api", "--port", str(port)], env=env)
            worker = start_module("judge_service.cli", ["worker", "--backend", "rules", *more], env=env)
            self.children, self.url = (api, worker), api.ready["url"]

        def kill(self):
            for child in self.children:
                child.process.kill()
                child.stop()

    made = Judge()
    yield made
    made.kill()


def test_it_waits_for_a_judge_that_is_away_at_its_start_and_for_one_that_dies(service, judge, until):
    judge.start()
    port = int(judge.url.rsplit(":", 1)[1])
    judge.kill()
    service.start_runner("--judge-url", judge.url, "--rubric", "demo-v1")
    steps = 100
    job = service.create(
        safety={"method": METHOD},
        training={"steps": steps, "batch_size": 4, "ranks": 2, "adapter": "full", "checkpoint_every": 10_000},
    )

    def parked():
        found = service.job(job)
        assert found["status"] in ("queued", "running"), found["error"]
        return found if found["safety"]["state"] == "paused" else None

    at_start = until(parked, "parked before its start")
    assert at_start["status"] == "queued"
    assert f"the judge at {judge.url} does not answer" in at_start["safety"]["reason"]
    with service.http as client:
        assert 'tether_jobs_held{hold="judge"} 1.0' in client.get("/metrics").text

    # Slow, or the run would be over before it is killed.
    judge.start(port, "--faulty", "delay_s=0.3")
    until(lambda: len(service.steps(job)) > 5, "it trains, since the judge is there")
    with service.http as client:
        seen = client.get("/metrics").text
    assert f'tether_job_staleness_limit_steps{{clock="opportunistic",job_id="{job}"}} 2.0' in seen
    for name in (
        "tether_job_staleness_steps",
        "tether_job_overdue",
        "tether_job_risk",
        "tether_job_eta_seconds",
    ):
        assert f'{name}{{job_id="{job}"}} ' in seen
    judge.kill()
    in_the_middle = until(parked, "parked in the middle")
    reached = in_the_middle["progress"]["step"]
    assert 5 < reached < steps
    assert f"the judge at {judge.url}" in in_the_middle["safety"]["reason"]
    assert service.processes_of(service.layout.run(job)) == [], "its devices are free"

    judge.start(port)
    done = service.wait_for(job, "succeeded")
    assert done["progress"]["step"] == steps
    with service.openai as client:
        events = list(client.fine_tuning.jobs.list_events(job, limit=1000))
    trained = [event.data for event in reversed(events) if event.type == "metrics"]
    assert [data["step"] for data in trained] == list(range(1, steps + 1))
    assert all(data["staleness"] <= 2 and not data["overdue"] for data in trained)
    assert max(data["wait_s"] for data in trained) < 4.5
    said = [event.message for event in events]
    assert sum(message.startswith("The judge answers again") for message in said) == 2
    assert any("park: the job is checkpointed and waits for the judge" in message for message in said)
