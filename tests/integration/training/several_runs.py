"""Runs one after the other in one set of ranks: `torchrun several_runs.py SPEC[@STEP]...`.

torchrun and DeepSpeed take ten seconds to start, a tiny run takes one. `@STEP`: the run is stopped
before that step, and what it is made of is made again from its checkpoint.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from trainer.training.assemble import assembled
from trainer.training.distributed import World, world_from_environment
from trainer.training.engine import shutdown
from trainer.training.loop import Run, train
from trainer.training.recorder import Recorder
from trainer.training.run_spec import Outcome, OutcomeStatus, RunSpec, read_spec


def run(spec: RunSpec, world: World, stop_at: int | None) -> None:
    recorder = Recorder(spec.run_dir, writes=world.rank == 0)
    if stop_at is not None:
        assert part(spec, world, recorder, stop_at).status is OutcomeStatus.STOPPED
    outcome = part(spec, world, recorder, None)
    assert outcome.status is OutcomeStatus.SUCCEEDED
    recorder.outcome(outcome)


def part(spec: RunSpec, world: World, recorder: Recorder, stop_at: int | None) -> Outcome:
    runs: list[Run] = []
    with assembled(spec, world, recorder, lambda: bool(runs) and runs[0].step == stop_at) as made:
        runs.append(made)
        return train(made)


def main() -> None:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    world = world_from_environment()
    for asked in sys.argv[1:]:
        path, _, step = asked.partition("@")
        print(f"--- {asked}", flush=True)
        run(read_spec(Path(path)), world, int(step) if step else None)
    shutdown()


if __name__ == "__main__":
    main()
