"""`tether gpus`: is the GPUs' split between judge and trainer one that can work?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from shared.errors import ConfigError
from shared.gpu_split import JUDGE, NONE, TRAINER, GpuSplit, GpuSplitError, split_gpus


def gpus(
    env_file: Annotated[
        Path, typer.Option(help="Where the environment does not say it; docker compose reads it too.")
    ] = Path(".env"),
    trainer: Annotated[
        bool, typer.Option("--trainer", help="Fail where the trainer has none: asked before a runner starts.")
    ] = False,
    override: Annotated[
        bool, typer.Option("--override", help="Print an override file for docker compose, an entry a device.")
    ] = False,
) -> None:
    """Check JUDGE_GPUS and TRAINER_GPUS."""
    try:
        split = split_gpus({**read_env(env_file), **os.environ})
    except GpuSplitError as error:
        raise ConfigError(str(error)) from None
    if trainer and not split.trainer:
        raise ConfigError("TRAINER_GPUS=none leaves the runner no GPU: do not start it, or give it one")
    if override:
        print(override_file(split), end="")
        return
    judge, ranks = len(split.judge), len(split.trainer)
    print(f"judge:   {','.join(split.judge) or NONE}   (vLLM with --data-parallel-size {judge})")
    print(f"trainer: {','.join(split.trainer) or NONE}   (a job has {ranks} ranks unless it says otherwise)")


def read_env(path: Path) -> Mapping[str, str]:
    """The two settings, as docker compose reads them from a file of `NAME=value` lines."""
    if not path.exists():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and name.strip() in (JUDGE, TRAINER):
            found[name.strip()] = value.partition(" #")[0].strip().strip("'\"")
    return found


def override_file(split: GpuSplit) -> str:
    """For engines that know devices by CDI names alone, where "1,2,3" is none."""
    lines = ["# Written by `tether gpus --override`.", "services:"]
    for service, devices in (("vllm", split.judge), ("runner", split.trainer)):
        ids = ", ".join(f'"{device}"' for device in devices)
        lines += [
            f"  {service}:",
            "    deploy:",
            "      resources:",
            "        reservations:",
            "          devices: !override",
            f"            - {{driver: nvidia, device_ids: [{ids}], capabilities: [gpu]}}",
        ]
    return "\n".join(lines) + "\n"
