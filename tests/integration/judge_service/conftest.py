"""The judge service as its users run it: real processes on a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis_servers import PROMISED, SERVERS

from shared.embedded_redis import RunningRedis, running_redis
from shared.processes import Child, start_module

MODULE = "judge_service.cli"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    missing = [name for name in PROMISED if not any(server.startswith(name) for server in SERVERS)]
    terminalreporter.write_line(f"queue tried on: {', '.join(SERVERS)}")
    if missing:
        terminalreporter.write_line(f"not found, not tried: {', '.join(missing)}")


@pytest.fixture(scope="session", params=SERVERS.values(), ids=SERVERS.keys())
def any_redis(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRedis]:
    """Each server there is, for the tests of the queue itself. Never kill it: start your own."""
    with running_redis(tmp_path_factory.mktemp("redis"), request.param) as server:
        yield server


class Processes:
    """Starts APIs and workers of one test, and stops them."""

    def __init__(self, redis_url: str, prefix: str, directory: Path) -> None:
        self.env = {"REDIS_URL": redis_url, "TETHER_JUDGE_KEY_PREFIX": prefix, "OMP_NUM_THREADS": "1"}
        self.directory = directory
        self._children: list[Child] = []
        self._clients: list[httpx.Client] = []

    def api(self, *args: str) -> httpx.Client:
        """A client of an API of its own. `client.child` is not needed: it ends with the test."""
        child = self.start("api", "--port", "0", *args)
        client = httpx.Client(base_url=child.ready["url"], timeout=40)
        self._clients.append(client)
        return client

    def worker(self, *args: str) -> Child:
        # A judge that was made worse on purpose would hardly pass.
        more = ["--no-controls"] if "--faulty" in args and "--controls" not in args else []
        return self.start("worker", "--backend", "rules", *more, *args)

    def start(self, *args: str) -> Child:
        log = self.directory / f"{args[0]}-{len(self._children)}.log"
        child = start_module(MODULE, args, env=self.env, log=log)
        self._children.append(child)
        return child

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.directory.glob("*.log")))

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        for child in self._children:
            child.stop()


@pytest.fixture
def processes(redis_server: RunningRedis, redis_prefix: str, tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(redis_server.url, redis_prefix, tmp_path)
    yield processes
    processes.stop()


@pytest.fixture
def processes_on(tmp_path: Path) -> Iterator[Callable[[str], Processes]]:
    """`processes_on(redis_url)`: on a Redis that the test may kill."""
    made: list[Processes] = []

    def make(redis_url: str) -> Processes:
        made.append(Processes(redis_url, "test:", tmp_path))
        return made[-1]

    yield make
    for processes in made:
        processes.stop()


@pytest.fixture
def submission() -> Callable[..., dict[str, Any]]:
    def make(count: int = 3, *, start: int = 0, **fields: Any) -> dict[str, Any]:
        items = [
            {"id": f"item-{n}", "prompt": f"How do I bake cake {n}?", "response": f"With flour {n}."}
            for n in range(start, start + count)
        ]
        return {"items": items, "rubric": "demo-v1", **fields}

    return make
