"""Fixtures that every tier may ask for. Nothing starts unless a test asks."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
import redis

from shared.embedded_redis import RunningRedis, running_redis


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRedis]:
    """One real server for all tests that keep to a prefix. Never kill this one: start your own."""
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_prefix(redis_server: RunningRedis) -> Iterator[str]:
    """A prefix of this test's own; what stands under it is deleted afterwards."""
    prefix = f"test:{uuid4().hex}:"
    yield prefix
    with redis.Redis.from_url(redis_server.url) as client:
        for key in client.scan_iter(match=f"{prefix}*", count=1000):
            client.delete(key)
