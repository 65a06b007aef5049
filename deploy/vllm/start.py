"""`vllm serve ARGS...` on the judge's GPUs, a replica of the model on each.

Runs in vLLM's own image, with gpu_split.py mounted beside it. Standard library only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpu_split import GpuSplitError, split_gpus

ENCODINGS = Path("/etc/encodings")
"""gpt-oss's vocabulary for machines without a network, where vLLM's own copy is not wanted."""


def command(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Raises GpuSplitError."""
    split = split_gpus(environment)
    if not split.judge:
        raise GpuSplitError("JUDGE_GPUS=none leaves vLLM no GPU: do not start it, or give it one")
    return ["vllm", "serve", *arguments, "--data-parallel-size", str(len(split.judge))]


def with_encodings(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """An empty folder must not be named: vLLM would look there and nowhere else."""
    if not any(folder.glob("*.tiktoken")):
        return dict(environment)
    return {**environment, "TIKTOKEN_ENCODINGS_BASE": str(folder)}


if __name__ == "__main__":
    try:
        argv = command(sys.argv[1:], os.environ)
    except GpuSplitError as error:
        sys.exit(f"vllm: {error}")
    os.execvpe(argv[0], argv, with_encodings(os.environ, ENCODINGS))
