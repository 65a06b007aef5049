"""The whole stack through `tether up` and `running_stack`: real Redis, judge, API and runner."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from shared.errors import ServiceError
from shared.lifeline import command, environment
from trainer.demo import build
from trainer.demo.pretrain import Schedule, Settings, Shape
from trainer.up.stack import running_stack

pytestmark = pytest.mark.integration

UP = "from trainer.up.cli import up; import typer; typer.run(up)"


@pytest.fixture(scope="session")
def world_cache(tmp_path_factory):
    """A world that knows nothing, where the stack looks for the real one: its start is what counts here."""
    cache = tmp_path_factory.mktemp("cache")
    shape = Shape(hidden=32, layers=1, heads=2, intermediate=64)
    schedule = Schedule(steps=1, batch_size=2, learning_rate=1e-3)
    small = Settings(base=shape, base_schedule=schedule, judge=shape, judge_schedule=schedule)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TETHER_CACHE", str(cache))
        made = build.ensure_world(progress=False, settings=small).root
    made.rename(cache / build.world_name(Settings()))
    return cache


@pytest.fixture
def cached(world_cache, monkeypatch):
    monkeypatch.setenv("TETHER_CACHE", str(world_cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def up(cached, tmp_path):
    """Starts `tether up`; yields a function that does, and ends what is left."""
    started = []

    def start(*options):
        state = ["--state-dir", str(tmp_path / "state")]
        process = subprocess.Popen(
            command([sys.executable, "-c", UP, *state, *options]),
            env=environment(os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def read_until(process, words):
    """The output up to the line with `words`."""
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(f"ended without {words!r}: {said}")


def descendants(pid: int) -> set[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:  # it has ended meanwhile
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_everything_is_ready_in_the_block_and_gone_after_it(cached, tmp_path, until):
    said = []
    # Its judge is untrained and would fail its control pairs; with faults (none here) they are not asked.
    with running_stack(
        tmp_path / "stack", judge_workers=2, judge_faulty="seed=0", on_event=said.append
    ) as stack:
        pids = stack.pids
        assert set(pids) == {
            "redis",
            "judge-api",
            "judge-worker-0",
            "judge-worker-1",
            "trainer-api",
            "runner",
        }
        assert httpx.get(f"{stack.trainer_url}/readyz").json()["runners"] == 1
        ready = httpx.get(f"{stack.judge_url}/readyz").json()
        assert ready["components"]["workers"]["alive"] == 2
        assert [model["id"] for model in httpx.get(f"{stack.trainer_url}/v1/models").json()["data"]] == [
            "tether-tiny"
        ]
        item = {"prompt": "hello", "response": "hi"}
        body = {"items": [item], "rubric": "demo-v1", "wait_s": 20}
        verdict = httpx.post(f"{stack.judge_url}/v1/judgements", json=body, timeout=30).json()["items"][0]
        assert verdict["status"] in ("scored", "failed")

        with pytest.raises(ServiceError, match=f"already runs on .* \\(process {os.getpid()}\\)"):
            running_stack(tmp_path / "stack").__enter__()

        os.kill(pids["judge-worker-0"], signal.SIGKILL)
        os.kill(pids["redis"], signal.SIGKILL)
        until(lambda: any("judge-worker-0 is back" in line for line in said), "the worker is back")
        until(lambda: any("redis is back" in line for line in said), "Redis is back")
        again = stack.pids
        assert again["judge-worker-0"] != pids["judge-worker-0"]
        assert any("judge-worker-0 ended with status -9; starting it again in 0.5 s" in line for line in said)
    assert [name for name, pid in {**pids, **again}.items() if is_alive(pid)] == []


def test_a_child_that_cannot_start_shows_its_log_and_nothing_is_left(cached, tmp_path):
    before = descendants(os.getpid())
    with (
        pytest.raises(ServiceError, match=r"(?s)judge-worker-0 ended with status 1 .*nonsense"),
        running_stack(tmp_path / "stack", judge_faulty="nonsense=1", on_event=lambda said: None),
    ):
        pass
    assert descendants(os.getpid()) == before


@pytest.mark.parametrize("option", ["--trainer-port", "--judge-port"])
def test_a_taken_port_is_told_before_anything_starts(up, tmp_path, option):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        other = "--judge-port" if option == "--trainer-port" else "--trainer-port"
        process = up(option, str(port), other, "0")
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"port {port} is taken" in said
    assert option in said
    assert not (tmp_path / "state/logs/runner.log").exists()


def test_up_prints_both_addresses_and_stops_on_a_signal(up):
    process = up("--trainer-port", "0", "--judge-port", "0")
    said = read_until(process, "Ctrl-C stops everything")
    assert "trainer: http://127.0.0.1:" in said
    assert "judge:   http://127.0.0.1:" in said
    children = descendants(process.pid)
    assert len(children) == 5
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=90)
    assert process.returncode == 0
    assert not any(map(is_alive, children))


def test_a_killed_up_leaves_no_process(up, until):
    process = up("--trainer-port", "0", "--judge-port", "0")
    read_until(process, "Ctrl-C stops everything")
    children = descendants(process.pid)
    assert len(children) == 5
    process.kill()
    until(lambda: not any(map(is_alive, children)), "every child has ended", 20)


def test_with_a_judge_elsewhere_none_is_started(cached, tmp_path):
    said = []
    with running_stack(tmp_path / "stack", judge_url="http://127.0.0.1:9", on_event=said.append) as stack:
        assert set(stack.pids) == {"trainer-api", "runner"}
        assert stack.judge_url == "http://127.0.0.1:9"
    assert any("does not answer" in line for line in said)
