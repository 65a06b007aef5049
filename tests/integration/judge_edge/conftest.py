"""One service for all tests of the HTTP edge: an open API, one that asks for keys, a worker, one Redis.

Starting a process takes seconds, so tests share these and keep to ids of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from judge_service.tenants.keys import Limits, add_key
from shared.embedded_redis import RunningRedis
from shared.processes import Child, start_module

MODULE = "judge_service.cli"


@dataclass
class Edge:
    directory: Path
    redis_url: str
    prefix: str
    keys_file: Path
    keys: dict[str, str]
    """API key of each tenant: `acme` without a limit, `beta` without, `slow` with 4 items/s, 8 at once."""
    children: dict[str, Child] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        return {
            "REDIS_URL": self.redis_url,
            "TETHER_JUDGE_KEY_PREFIX": self.prefix,
            "OMP_NUM_THREADS": "1",
        }

    def start(self, name: str, *args: str, env: dict[str, str] | None = None) -> Child:
        log = self.directory / f"{name}.log"
        return start_module(MODULE, args, env={**self.env, **(env or {})}, log=log)

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()

    def url(self, name: str) -> str:
        return str(self.children[name].ready["url"])

    def client(self, name: str = "open", *, tenant: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.keys[tenant]}"} if tenant else {}
        return httpx.Client(base_url=self.url(name), headers=headers, timeout=40)


@pytest.fixture(scope="session")
def edge(redis_server: RunningRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    directory = tmp_path_factory.mktemp("edge")
    keys_file = directory / "keys.json"
    limits = {"acme": None, "beta": None, "slow": Limits(items_per_s=4, burst=8)}
    keys = {tenant: add_key(keys_file, tenant, limit)[1] for tenant, limit in limits.items()}
    edge = Edge(directory, redis_server.url, f"edge:{uuid4().hex}:", keys_file, keys)
    wanted = {
        "open": ("api", "--port", "0", "--max-body-bytes", "200000", "--events-keep-alive-s", "0.3"),
        "keyed": ("api", "--port", "0", "--keys-file", str(keys_file)),
        "worker": ("worker", "--backend", "rules"),
    }
    with ThreadPoolExecutor(len(wanted)) as pool:
        started = {name: pool.submit(edge.start, name, *args) for name, args in wanted.items()}
        try:
            for name, child in started.items():
                edge.children[name] = child.result()
            yield edge
        finally:
            for child in started.values():
                if child.exception() is None:
                    child.result().stop()


@pytest.fixture
def open_api(edge: Edge) -> Iterator[httpx.Client]:
    with edge.client() as client:
        yield client


@pytest.fixture
def name() -> str:
    """Begins ids of this test's own."""
    return uuid4().hex[:12]


@pytest.fixture
def submission(name: str) -> Callable[..., dict[str, Any]]:
    def make(count: int = 1, **fields: Any) -> dict[str, Any]:
        items = [
            {
                "id": f"{name}-{n}",
                "prompt": f"How do I bake cake {n} of {name}?",
                "response": f"With flour {n}.",
            }
            for n in range(count)
        ]
        return {"items": items, "rubric": "demo-v1", **fields}

    return make


@pytest.fixture(scope="session")
def problem() -> Callable[[httpx.Response, int], dict[str, Any]]:
    def check(response: httpx.Response, status: int) -> dict[str, Any]:
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/problem+json"
        body: dict[str, Any] = response.json()
        assert body["status"] == status
        assert body["title"]
        assert body["detail"]
        if status in (429, 503):
            assert int(response.headers["retry-after"]) >= 1
        return body

    return check
