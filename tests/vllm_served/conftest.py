"""Real vLLM servers, one at a time, in the environment that `deploy/vllm_cpu_env.sh` makes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.vllm_server import PYTHON, serve_vllm
from shared.embedded_redis import RunningRedis
from shared.processes import Child, start_module

ROOT = Path(__file__).resolve().parents[2]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Left out of `pytest tests`: this tier needs an environment of its own. `make test-vllm` names it."""
    here = Path(__file__).parent
    named = [config.invocation_params.dir / str(arg).split("::")[0] for arg in config.args]
    return None if any(here == path or here in path.parents for path in named) else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            # A server takes half a minute to come up, and longer on busy cores.
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def world_judge() -> Path:
    """The embedded world's small judge. Built first where no demo has run yet."""
    from trainer.demo.build import ensure_world

    return ensure_world().judge


@pytest.fixture(scope="module")
def small_judge_url(world_judge: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("vllm") / "small.log"
    # It knows no JSON, and would fill what a schema leaves open with blanks.
    schemas = '{"backend": "xgrammar", "disable_any_whitespace": true}'
    flags = ("--dtype", "float32", "--structured-outputs-config", schemas)
    with serve_vllm(world_judge, "small-judge", *flags, log=log) as url:
        yield url


@pytest.fixture(scope="session")
def gpt_oss_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt-oss")
    command = [str(ROOT / PYTHON), str(ROOT / "tests/vllm_served/tiny_gpt_oss.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def gpt_oss_url(gpt_oss_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("vllm") / "gpt-oss.log"
    with serve_vllm(
        gpt_oss_folder, "gpt-oss", "--max-model-len", "8192", "--enable-scale-out", log=log
    ) as url:
        yield url


@pytest.fixture
def judge_service(
    redis_server: RunningRedis, redis_prefix: str, tmp_path: Path
) -> Iterator[Callable[..., httpx.Client]]:
    """`judge_service(*worker_flags)`: a client of the judge's API, with one worker behind it."""
    env = {"REDIS_URL": redis_server.url, "TETHER_JUDGE_KEY_PREFIX": redis_prefix, "OMP_NUM_THREADS": "1"}
    children: list[Child] = []
    clients: list[httpx.Client] = []

    def start(*flags: str) -> httpx.Client:
        for args in (("api", "--port", "0"), ("worker", *flags)):
            log = tmp_path / f"{args[0]}.log"
            children.append(start_module("judge_service.cli", args, env=env, log=log))
        clients.append(httpx.Client(base_url=children[-2].ready["url"], timeout=120))
        return clients[-1]

    yield start
    for client in clients:
        client.close()
    for child in children:
        child.stop()
