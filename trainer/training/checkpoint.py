"""Checkpoints: a folder `step-N` appears whole or not at all.

step-000100/
  engine/         DeepSpeed's optimizer and weights, a file a rank
  rank-0.json     the guide's state of each rank
  state.json      step, trained tokens, ranks
  model/          the policy as transformers or PEFT loads it
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.errors import TrainingError
from trainer.training.distributed import Collective
from trainer.training.engine import Engine
from trainer.training.model import save_model

_NAME = re.compile(r"step-(\d{6,})")
MODEL = "model"


@dataclass(frozen=True)
class RunState:
    """Where a run stands between two steps."""

    step: int
    """Steps done; the next one's number."""
    trained_tokens: int
    ranks: int
    parked: bool


def latest(checkpoints: Path) -> Path | None:
    """The newest whole checkpoint."""
    found = [path for path in checkpoints.glob("step-*") if _NAME.fullmatch(path.name)]
    return max(found, key=lambda path: int(path.name[5:]), default=None)


def save(
    checkpoints: Path,
    *,
    state: RunState,
    guide_state: dict[str, Any] | None,
    engine: Engine,
    tokenizer: Any,
    collective: Collective,
    keep: int,
    card: dict[str, Any],
) -> Path:
    """Every rank calls it. Returns the checkpoint's folder; the oldest beyond `keep` are removed."""
    final = checkpoints / f"step-{state.step:06d}"
    partial = checkpoints / f".partial-{final.name}"
    rank = collective.world.rank
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    collective.barrier()
    engine.save(partial)
    (partial / f"rank-{rank}.json").write_text(json.dumps(guide_state), encoding="utf-8")
    weights = engine.policy_weights()
    if weights is not None:
        save_model(engine.objective.policy, tokenizer, weights, partial / MODEL, card)
        (partial / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")
    collective.barrier()
    if rank == 0:
        # A step that is saved again (stopped right after a checkpoint) replaces the older one.
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        _prune(checkpoints, keep)
    collective.barrier()
    return final


def _prune(checkpoints: Path, keep: int) -> None:
    found = sorted(
        (path for path in checkpoints.glob("step-*") if _NAME.fullmatch(path.name)),
        key=lambda path: int(path.name[5:]),
    )
    for path in found[:-keep]:
        shutil.rmtree(path)


def load(checkpoint: Path, *, rank: int, ranks: int) -> tuple[RunState, dict[str, Any] | None]:
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
    guide_state = json.loads((checkpoint / f"rank-{rank}.json").read_text(encoding="utf-8"))
    return state, guide_state
