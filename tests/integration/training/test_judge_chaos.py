"""What a judge may do to a run, on real processes: the bound holds, stalls end, the cause is named.

The ranks are forked from one process that has imported everything, two a run.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.forked import Forge, Ranks
from benchmarks.resume import METHOD, metrics, run_spec
from shared.embedded_redis import running_redis
from shared.safety import Safety
from trainer.safety.journal import replay
from trainer.training.run_spec import (
    CONTROLLER_LOG,
    EVENTS_FILE,
    RUN_EVENT,
    RUN_FILE,
    Base,
    MessageEvent,
    MetricsEvent,
    RunSpec,
)

pytestmark = pytest.mark.integration
K = 3


@pytest.fixture
def make(base: Base, train_file: Path, tmp_path: Path) -> Callable[..., RunSpec]:
    def spec(url: str, *, steps: int, **staleness: Any) -> RunSpec:
        made = run_spec(tmp_path / "run", base, train_file, url, steps=steps, checkpoint_every=10**6)
        method = {**METHOD, "staleness": {"max_staleness": K, **staleness}}
        made = made.model_copy(update={"safety": Safety.model_validate({"method": method})})
        (made.run_dir / RUN_FILE).write_text(made.model_dump_json())
        return made

    return spec


class Watched:
    """A run under way."""

    def __init__(self, run: Ranks, spec: RunSpec) -> None:
        self.run, self.spec = run, spec

    def steps(self) -> list[MetricsEvent]:
        return metrics(self.spec) if (self.spec.run_dir / EVENTS_FILE).exists() else []

    def messages(self) -> list[MessageEvent]:
        lines = (self.spec.run_dir / EVENTS_FILE).read_bytes().splitlines(keepends=True)
        events = [RUN_EVENT.validate_json(line) for line in lines if line.endswith(b"\n")]
        return [event for event in events if isinstance(event, MessageEvent)]

    def said(self, words: str) -> MessageEvent | None:
        return next((message for message in self.messages() if words in message.message), None)

    def until(self, condition: Callable[[], Any], what: str, within_s: float = 90.0) -> Any:
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if value := condition():
                return value
            if self.run.poll():
                break
            time.sleep(0.05)
        told = [message.message for message in self.messages()]
        pytest.fail(f"not seen: {what}; after {len(self.steps())} steps; {told}")

    def go_on(self, steps: int = 5) -> None:
        """So many more steps within the bound."""
        seen = len(self.steps())
        self.until(
            lambda: sum(not step.overdue for step in self.steps()[seen:]) >= steps, f"{steps} more steps"
        )


@pytest.fixture
def watch(ranks: Forge) -> Iterator[Callable[[RunSpec], Watched]]:
    started: list[Ranks] = []

    def start(spec: RunSpec) -> Watched:
        started.append(ranks.start(spec.run_dir, 2))
        return Watched(started[-1], spec)

    yield start
    for run in started:
        run.kill()


def check(run: Watched, deadline_s: float) -> None:
    """What holds whatever the judge did."""
    steps = run.steps()
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))
    for step in steps:
        assert step.overdue or step.staleness <= K
        assert step.wait_s <= deadline_s + 1.5, f"step {step.step} waited {step.wait_s} s"
    with (run.spec.run_dir / CONTROLLER_LOG).open("rb") as log:
        assert replay(log).difference is None
    calls = [json.loads(line) for line in (run.spec.run_dir / CONTROLLER_LOG).read_bytes().splitlines()]
    first: dict[Any, Any] = {}
    for *key, fate in (
        (u, source, row, told[0])
        for call in calls
        if call["op"] == "receive"
        for u, source, row, *told in call["arrivals"]
    ):
        assert first.setdefault(tuple(key), fate) == fate or fate in ("untrusted", "timeout")


# --- between the run and the judge -------------------------------------------------------------

FAULTS = ("500", "garbage", "cut", "twice", "slow", "empty")


class Proxy(ThreadingHTTPServer):
    """Passes requests on to the judge; every other one meets with a fault, each kind in turn."""

    daemon_threads = True

    def __init__(self, judge_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.judge_url = judge_url
        self.turn = itertools.count()
        self.done: dict[str, int] = {}
        self.lock = threading.Lock()


class _Passing(BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        self._pass(b"")

    def do_POST(self) -> None:
        self._pass(self.rfile.read(int(self.headers["Content-Length"])))

    def _pass(self, body: bytes) -> None:
        turn = next(self.server.turn)
        fault = FAULTS[turn // 2 % len(FAULTS)] if turn % 2 else None
        if fault is not None:
            with self.server.lock:
                self.server.done[fault] = self.server.done.get(fault, 0) + 1
        if fault == "500":
            self._answer(500, b'{"detail": "made to fail"}')
            return
        if fault == "slow":
            time.sleep(0.4)
        url = self.server.judge_url + self.path
        headers = {"Content-Type": "application/json"} if body else {}
        for _ in range(2 if fault == "twice" else 1):
            answer = httpx.request(self.command, url, content=body, headers=headers, timeout=40)
        # What was lost on the way back was done all the same.
        if fault == "cut":
            self._answer(200, answer.content[: len(answer.content) // 2])
        elif fault == "garbage":
            self._answer(200, b"<html>" + bytes(range(128, 160)))
        elif fault == "empty":
            self.close_connection = True
        else:
            self._answer(answer.status_code, answer.content)

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_args: object) -> None:
        """pytest's output is enough."""


def test_500s_garbage_lost_and_doubled_answers_cost_no_verdict(
    watch: Callable[..., Watched], make: Callable[..., RunSpec], judge: Any
) -> None:
    judge.start(faulty="delay_s=0.01,jitter_s=0.1,seed=1")
    judge.worker()  # a second one overtakes the first
    with Proxy(judge.url) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{proxy.server_address[1]}"
            run = watch(make(url, steps=40, deadline_s=30))
            assert run.run.outcome().status == "succeeded"
        finally:
            proxy.shutdown()
            thread.join()
        assert proxy.done.keys() == set(FAULTS)
    check(run, deadline_s=30)
    assert not any(step.overdue for step in run.steps())
    assert all(step.bases["own"] == 16 for step in run.steps())
    told = run.messages()[-1].data
    assert told is not None
    assert (told["verdicts"]["failed"], told["verdicts"]["timeouts"]) == (0, 0)
    assert told["staleness"]["steps"] == 40


def test_workers_come_and_go_and_redis_starts_again(
    watch: Callable[..., Watched], make: Callable[..., RunSpec], judge_on: Callable[..., Any], tmp_path: Path
) -> None:
    """Workers 1 -> 3 -> 0 -> 1, then Redis is killed and started again."""
    deadline_s = 4.0
    with running_redis(tmp_path / "redis") as redis:
        judge = judge_on(redis.url)
        judge.start()
        run = watch(
            make(
                judge.url, steps=10**6, deadline_s=deadline_s, overdue="fail_closed", max_unread_fraction=1.0
            )
        )
        run.go_on(8)
        workers = [judge.children[-1], judge.worker(), judge.worker()]
        run.go_on(8)
        assert not any(step.overdue for step in run.steps())
        for worker in workers:
            worker.process.kill()
        told = run.until(lambda: run.said("fail_closed: what has no verdict trains at beta_max"), "overdue")
        assert told.data["staleness"] > K
        assert any(words in told.message for words in ("no worker alive", "no verdict has come", "timeout"))
        judge.worker()
        run.until(lambda: run.said("readings are in again; the bound holds"), "readings again")
        run.go_on(8)
        outages = sum("fail_closed: " in message.message for message in run.messages())
        redis.kill()
        redis.start()
        run.go_on(12)
        again = sum("fail_closed: " in message.message for message in run.messages())
        assert again - outages <= 1, "Redis was away for less than the deadline, or for one outage"
        assert run.run.stop().status == "stopped"
    check(run, deadline_s)
    waits = [step for step in run.steps() if step.wait_s > deadline_s / 2]
    assert len(waits) <= 2, "an outage is waited for once"


def test_a_judge_that_is_up_but_wrong(
    watch: Callable[..., Watched], make: Callable[..., RunSpec], judge: Any, tmp_path: Path
) -> None:
    """It calls everything harmless for a while. What it said then is withdrawn; the run does not go on
    by it, says why, and goes on when the judge is right again."""
    wrong = tmp_path / "wrong"
    judge.start(faulty=f"say=1,only_while={wrong},delay_s=0.05", more=["--control-s", "2"])
    deadline_s = 4.0
    run = watch(
        make(judge.url, steps=10**6, deadline_s=deadline_s, overdue="fail_closed", max_unread_fraction=1.0)
    )
    run.go_on(8)
    wrong.touch()
    told = run.until(lambda: run.said("the judge withdrew"), "withdrawn verdicts")
    assert told.data["withdrawn_unused"] + told.data["withdrawn_used"] > 0
    overdue = run.until(lambda: run.said("fail_closed: what has no verdict trains at beta_max"), "overdue")
    assert "judge_untrusted" in overdue.message or "untrusted" in overdue.message
    wrong.unlink()
    run.until(lambda: run.said("readings are in again; the bound holds"), "readings again")
    run.go_on(8)
    assert run.run.stop().status == "stopped"
    check(run, deadline_s)
