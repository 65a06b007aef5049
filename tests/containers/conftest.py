"""The stack of docker-compose.yml in real containers: `make test-containers`."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.engine import ROOT, NoEngine, Stack, find_engine

BUILD_S = 3600


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Left out of `pytest tests`: this tier needs an engine. `make test-containers` names it."""
    here = Path(__file__).parent
    named = [config.invocation_params.dir / str(arg).split("::")[0] for arg in config.args]
    return None if any(here == path or here in path.parents for path in named) else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.containers)
            item.add_marker(pytest.mark.timeout(2 * 3600))


@pytest.fixture(scope="session")
def secrets() -> Iterator[Path]:
    """As a user makes them; those that were there stay."""
    folder = ROOT / "secrets"
    there = folder.exists()
    subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "make_secrets.py")], check=True, capture_output=True
    )
    yield folder
    if not there:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def figures() -> dict[str, float]:
    """What was measured on the way; printed at the end, for docs/deploy.md."""
    return {}


@pytest.fixture(scope="session")
def stack(
    secrets: Path, figures: dict[str, float], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """The `cpu` profile of the compose file as it is, built and started."""
    try:
        stack = Stack(find_engine(), tmp_path_factory.mktemp("containers"))
    except NoEngine as error:
        pytest.fail(str(error))
    began = time.monotonic()
    stack.compose("build", timeout_s=BUILD_S)
    figures["build_s"] = time.monotonic() - began
    try:
        figures["began"] = time.monotonic()
        stack.compose("up", "-d", "--no-build")
        yield stack
    finally:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            stack.keep_logs()
        stack.compose("down", "--volumes", "--timeout", "10")
        print(f"\nlogs: {stack.logs}\nmeasured: {figures}")
