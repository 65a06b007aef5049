"""Which GPUs the judge has and which the trainer: JUDGE_GPUS and TRAINER_GPUS, such as "0" and "1,2,3".

`none` for the one that does not run: with a single GPU the judge scores first, and training comes after.

Standard library only, and no other module of ours: the vLLM container runs this file by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

JUDGE = "JUDGE_GPUS"
TRAINER = "TRAINER_GPUS"
NONE = "none"
DEVICE = re.compile(r"\d+|(GPU|MIG)-[0-9a-fA-F-]+")


class GpuSplitError(Exception):
    """Says which setting is wrong, with which value, and what to do."""


@dataclass(frozen=True)
class GpuSplit:
    """Device ids as nvidia-smi -L shows them: indices, or GPU-... names. Empty: it does not run."""

    judge: tuple[str, ...]
    trainer: tuple[str, ...]


def split_gpus(environment: Mapping[str, str]) -> GpuSplit:
    """Raises GpuSplitError where either is missing or malformed, or both name the same device."""
    split = GpuSplit(_devices(JUDGE, environment), _devices(TRAINER, environment))
    if shared := sorted(set(split.judge) & set(split.trainer)):
        raise GpuSplitError(
            f"{JUDGE}={','.join(split.judge)} and {TRAINER}={','.join(split.trainer)} share"
            f" {', '.join(shared)}: vLLM takes nearly all memory of its GPUs, so give each GPU to one of"
            f" them. With a single GPU the judge scores first ({TRAINER}={NONE}) and training comes after"
            f" ({JUDGE}={NONE}): docs/deploy.md"
        )
    if len({device.isdigit() for device in (*split.judge, *split.trainer)}) > 1:
        raise GpuSplitError(
            f"{JUDGE}={','.join(split.judge)} and {TRAINER}={','.join(split.trainer)} mix indices and names,"
            " so that a shared device cannot be seen; use one kind for both"
        )
    return split


def _devices(name: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    value = environment.get(name, "").strip()
    if not value:
        raise GpuSplitError(
            f"{name} is not set: give device ids, such as {name}=0 or {name}=1,2,3, or {NONE}"
        )
    if value == NONE:
        return ()
    devices = tuple(part.strip() for part in value.split(","))
    for device in devices:
        if not DEVICE.fullmatch(device):
            raise GpuSplitError(
                f"{name}={value}: {device!r} is no device id; use indices or GPU-... names as nvidia-smi -L"
                " shows them, separated by commas"
            )
    if len(set(devices)) < len(devices):
        raise GpuSplitError(f"{name}={value} names a device twice")
    return devices
