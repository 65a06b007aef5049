"""The command line in docs/judge_backends.md, read by vLLM's own parser."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

from benchmarks.vllm_server import PYTHON

ROOT = Path(__file__).resolve().parents[2]
PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
args = make_arg_parser(FlexibleArgumentParser()).parse_args(json.loads(sys.argv[1]))
print("PARSED", json.dumps({key: getattr(args, key) for key in json.loads(sys.argv[2])}))
"""


def documented() -> list[str]:
    text = (ROOT / "docs" / "judge_backends.md").read_text(encoding="utf-8")
    [found] = re.findall(r"^ +vllm serve (.+?)(?<!\\)$", text, re.DOTALL | re.MULTILINE)
    return shlex.split(found.replace("\\\n", " "))


def test_vllm_knows_every_flag() -> None:
    wanted = ["model_tag", "enable_scale_out", "scheduling_policy", "max_model_len", "reasoning_parser"]
    command = [str(ROOT / PYTHON), "-c", PARSE, json.dumps(documented()), json.dumps(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    parsed = json.loads(done.stdout.split("PARSED", 1)[1])
    assert parsed["model_tag"] == "openai/gpt-oss-20b"
    assert parsed["enable_scale_out"] is True
    assert parsed["max_model_len"] == 16384
