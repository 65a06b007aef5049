"""Checkpoints: a folder `step-N` appears whole or not at all.

step-000100/
  engine/         DeepSpeed's optimizer and weights, a file a rank
  rank-0.json     the state of each rank's guide and canaries
  state.json      step, trained tokens, ranks
  model/          the policy as transformers or PEFT loads it

Whatever ends the run, the newest folder of that name is usable: it is written under another name, brought to
the disk, and renamed. A step that is saved again (parked right after a checkpoint) becomes `step-000100.1`,
since the older one must not go before the newer one is there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from shared.errors import TrainingError
from trainer.training.distributed import Collective
from trainer.training.engine import Engine
from trainer.training.model import save_model

_NAME = re.compile(r"step-(\d{6,})(?:\.(\d+))?")
_PARTIAL = ".partial-"
MODEL = "model"


@dataclass(frozen=True)
class RunState:
    """Where a run stands between two steps."""

    step: int
    """Steps done; the next one's number."""
    trained_tokens: int
    ranks: int
    parked: bool


def _order(checkpoint: Path) -> tuple[int, int]:
    """(step, how often it had been saved before)"""
    found = _NAME.fullmatch(checkpoint.name)
    assert found is not None, checkpoint
    return int(found[1]), int(found[2] or 0)


def _whole(checkpoints: Path) -> list[Path]:
    """The oldest first."""
    return sorted((path for path in checkpoints.glob("step-*") if _NAME.fullmatch(path.name)), key=_order)


def latest(checkpoints: Path) -> Path | None:
    """The newest whole checkpoint."""
    return max(_whole(checkpoints), key=_order, default=None)


def steps(checkpoints: Path) -> set[int]:
    """Of which there is a whole checkpoint."""
    return {_order(path)[0] for path in _whole(checkpoints)}


def of_step(checkpoints: Path, step: int) -> Path | None:
    """The newest whole checkpoint of a step."""
    return max((path for path in _whole(checkpoints) if _order(path)[0] == step), key=_order, default=None)


def save(
    checkpoints: Path,
    *,
    state: RunState,
    rank_state: dict[str, Any],
    engine: Engine,
    tokenizer: Any,
    collective: Collective,
    keep: int,
    card: dict[str, Any],
    wanted: Collection[int] = (),
) -> Path:
    """Every rank calls it. Returns the checkpoint's folder; the oldest beyond `keep` are removed, but for
    those of the steps `wanted`.

    Raises:
        TrainingError: the disk has no room for it. The one before it is still there.
    """
    final = _free_name(checkpoints, state.step)
    partial = checkpoints / f"{_PARTIAL}step-{state.step:06d}"
    rank = collective.world.rank
    if rank == 0:
        for left in checkpoints.glob(f"{_PARTIAL}*"):  # by a run that was killed while it saved
            shutil.rmtree(left)
        partial.mkdir(parents=True)
    _require_room(checkpoints, engine.checkpoint_bytes, state.step, collective)
    with _telling_of_a_full_disk(partial, engine.checkpoint_bytes, state.step):
        engine.save(partial)
        (partial / f"rank-{rank}.json").write_text(json.dumps(rank_state), encoding="utf-8")
        weights = engine.policy_weights()
        if weights is not None:
            save_model(engine.objective.policy, tokenizer, weights, partial / MODEL, card)
            (partial / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")
        collective.barrier()
        if rank == 0:
            _to_disk(partial)
            partial.replace(final)
            _prune(checkpoints, keep, wanted)
    collective.barrier()
    return final


def _free_name(checkpoints: Path, step: int) -> Path:
    taken = [again for path in _whole(checkpoints) for at, again in [_order(path)] if at == step]
    return checkpoints / (f"step-{step:06d}.{max(taken) + 1}" if taken else f"step-{step:06d}")


def _require_room(checkpoints: Path, needed: int, step: int, collective: Collective) -> None:
    """All ranks find out together: one that raises alone would leave the others waiting for it."""
    free = shutil.disk_usage(checkpoints).free if collective.world.rank == 0 else 0
    free = round(collective.mean([float(free)])[0] * collective.world.ranks)
    if free < needed:
        raise _no_room(checkpoints, needed, free, step)


@contextlib.contextmanager
def _telling_of_a_full_disk(partial: Path, needed: int, step: int) -> Iterator[None]:
    """What a full disk makes of torch's and safetensors' writers is told by neither in one way."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(partial.parent).free
        told = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not told and free >= needed:
            raise
        # What is left of it would keep even the message from being written.
        shutil.rmtree(partial, ignore_errors=True)
        raise _no_room(partial.parent, needed, free, step) from error


def _no_room(checkpoints: Path, needed: int, free: int, step: int) -> TrainingError:
    return TrainingError(
        f"no room for the checkpoint at step {step}: it takes about {needed} bytes below {checkpoints}, where"
        f" {free} are free. Make room, or lower training.keep_checkpoints; an earlier checkpoint, if there is"
        " one, is whole"
    )


def _to_disk(folder: Path) -> None:
    """After a power failure the name must not stand for files that were still on their way."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _prune(checkpoints: Path, keep: int, wanted: Collection[int]) -> None:
    newest_of_step = {_order(path)[0]: path for path in _whole(checkpoints)}
    kept = set(list(newest_of_step.values())[-keep:])
    kept |= {path for step, path in newest_of_step.items() if step in wanted}
    for path in _whole(checkpoints):
        if path not in kept:
            shutil.rmtree(path)


def load(checkpoint: Path, *, rank: int, ranks: int) -> tuple[RunState, dict[str, Any]]:
    """The parts that are not the engine's.

    Raises:
        TrainingError: it was made by another number of ranks.
    """
    state = RunState(**json.loads((checkpoint / "state.json").read_text(encoding="utf-8")))
    if state.ranks != ranks:
        raise TrainingError(
            f"the checkpoint {checkpoint.name} was made by {state.ranks} ranks, this run has {ranks};"
            f" set training.ranks to {state.ranks}"
        )
    rank_state = json.loads((checkpoint / f"rank-{rank}.json").read_text(encoding="utf-8"))
    return state, rank_state
