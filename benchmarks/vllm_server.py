"""A vLLM on the CPU, from the environment of `deploy/vllm_cpu_env.sh`, for as long as it is needed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from shared import lifeline
from shared.errors import ServiceError
from shared.processes import stop_process

PYTHON = Path(".venv-vllm/bin/python")
READY_S = 400.0
"""It takes half a minute on two idle cores."""


@contextlib.contextmanager
def serve_vllm(model: Path, name: str, *args: str, log: Path) -> Iterator[str]:
    """The base URL of a vLLM that serves `model` as `name`.

    Raises:
        ServiceError: its environment is not there, or it did not come up.
    """
    if not PYTHON.exists():
        raise ServiceError(f"there is no {PYTHON}: run deploy/vllm_cpu_env.sh")
    port = _free_port()
    command = [
        str(PYTHON), "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(model), "--served-model-name", name,
        "--host", "127.0.0.1", "--port", str(port), "--enforce-eager", *args,
    ]  # fmt: skip
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # The cores are shared with the judge service.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_SYSTEM_START_DATE": "2025-01-01",
    }
    with log.open("ab") as out:
        process = subprocess.Popen(
            lifeline.command(command),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=lifeline.environment({**os.environ, **settings}),
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process, log)
            yield url
        finally:
            stop_process(process, grace_s=30)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + READY_S
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        if process.poll() is not None or time.monotonic() > until:
            tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise ServiceError(f"vLLM did not come up (status {process.poll()}); it said: {tail}")
        time.sleep(0.5)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
