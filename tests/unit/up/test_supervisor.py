import threading
import time
from pathlib import Path

import pytest

from shared.errors import ServiceError
from trainer.up.children import Service
from trainer.up.ports import claim
from trainer.up.supervisor import Supervisor


class Actor:
    """A child that is ready at once, unless it is told otherwise."""

    def __init__(self, name, diary, *, ready=True, status=None):
        self.name, self.diary, self.ready, self.status = name, diary, ready, status
        self.pid = id(self)
        diary.append(f"+{name}")

    def poll(self):
        return self.status

    def is_ready(self):
        return self.ready

    def stop(self, grace_s):
        if self.status is None:
            self.diary.append(f"-{self.name}")
            self.status = 0


class Cast:
    def __init__(self, tmp_path: Path):
        self.diary: list[str] = []
        self.said: list[str] = []
        self.actors: dict[str, Actor] = {}
        self.tmp_path = tmp_path

    def service(self, name, *, ready_s=5.0, **how):
        def spawn():
            self.actors[name] = Actor(name, self.diary, **how)
            return self.actors[name]

        return Service(name, spawn, self.tmp_path / f"{name}.log", ready_s, 1.0)

    def supervisor(self, *waves):
        return Supervisor(waves, self.said.append)


@pytest.fixture
def cast(tmp_path):
    return Cast(tmp_path)


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_started_in_waves_and_stopped_in_reverse(cast):
    supervisor = cast.supervisor([cast.service("a")], [cast.service("b"), cast.service("c")])
    supervisor.start()
    assert set(supervisor.pids) == {"a", "b", "c"}
    supervisor.stop()
    assert cast.diary == ["+a", "+b", "+c", "-c", "-b", "-a"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"status": 3}, r"(?s)b ended with status 3 at its start.*the last words"),
        ({"ready": False, "ready_s": 0.1}, r"(?s)b was not ready within 0.1 s.*the last words"),
    ],
)
def test_a_failed_start_shows_the_log_and_stops_the_others(cast, how, message):
    (cast.tmp_path / "b.log").write_text("the last words\n")
    supervisor = cast.supervisor([cast.service("a")], [cast.service("b", **how)], [cast.service("c")])
    with pytest.raises(ServiceError, match=message):
        supervisor.start()
    assert "-a" in cast.diary
    assert "+c" not in cast.diary


def test_what_dies_is_started_again_and_it_is_told(cast):
    supervisor = cast.supervisor([cast.service("a"), cast.service("b")])
    supervisor.start()
    try:
        cast.actors["b"].status = -9
        until(lambda: any("b is back" in line for line in cast.said))
        assert "b ended with status -9; starting it again in 0.5 s" in cast.said[0]
        cast.actors["b"].status = 1
        until(lambda: any("b ended with status 1; starting it again in 1 s" in line for line in cast.said))
    finally:
        supervisor.stop()
    assert cast.diary.count("+a") == 1


def test_a_child_that_cannot_be_spawned_fails_the_start(cast):
    def spawn():
        raise OSError("no such program")

    supervisor = cast.supervisor([cast.service("a")], [Service("b", spawn, cast.tmp_path / "b.log", 1, 1)])
    with pytest.raises(ServiceError, match="no such program"):
        supervisor.start()
    assert cast.diary == ["+a", "-a"]


def test_a_stop_ends_a_start_that_hangs(cast):
    supervisor = cast.supervisor([cast.service("a", ready=False, ready_s=1000)])
    failure = []

    def start():
        try:
            supervisor.start()
        except ServiceError as error:
            failure.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    until(lambda: cast.diary == ["+a"])
    supervisor.stop()
    thread.join(10)
    assert failure == ["stopped while starting"]
    assert cast.diary == ["+a", "-a"]


def test_a_port_of_zero_is_a_free_one():
    assert claim(0, "--x") > 0
