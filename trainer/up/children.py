"""Child processes of the stack. They end with this process: each is on a lifeline.

Each is in a session of its own, so that Ctrl-C reaches only the supervisor, which stops them in order.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shared import lifeline
from shared.embedded_redis import EmbeddedRedis, start_redis, wait_for_redis
from shared.errors import ServiceError
from shared.processes import stop_process


class Child(Protocol):
    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""

    def is_ready(self) -> bool:
        """Whether it can be used. Does not wait."""

    def stop(self, grace_s: float) -> None:
        """SIGTERM; after `grace_s` SIGKILL. Returns when it has ended."""


@dataclass(frozen=True)
class Service:
    """A child that is to run, and to run again when it ends."""

    name: str
    spawn: Callable[[], Child]
    log: Path
    ready_s: float
    """Longest start."""
    grace_s: float
    """Longest stop."""


class ModuleChild:
    """`python -m module args`, ready when it says so in a JSON line on stdout; stderr goes to its log."""

    def __init__(self, module: str, args: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                lifeline.command([sys.executable, "-m", module, *args]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=lifeline.environment({**os.environ, **env}),
                start_new_session=True,
            )
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True, name=f"stdout of {module}")
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def is_ready(self) -> bool:
        return self._ready.is_set()

    def stop(self, grace_s: float) -> None:
        stop_process(self._process, grace_s)
        self._reader.join(grace_s)

    def _read(self) -> None:
        """To the end, or a child that says more than a pipe holds would stand still."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if _event(line) == "ready":
                self._ready.set()


class RedisChild:
    def __init__(self, plan: EmbeddedRedis) -> None:
        self._plan = plan
        self._process = start_redis(plan)

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def is_ready(self) -> bool:
        try:
            wait_for_redis(self._plan.url, 0.0, process=self._process)
        except ServiceError:
            return False
        return True

    def stop(self, grace_s: float) -> None:
        stop_process(self._process, grace_s)


def _event(line: bytes) -> object:
    try:
        said: Any = json.loads(line)
    except ValueError:
        return None
    return said.get("event") if isinstance(said, dict) else None
