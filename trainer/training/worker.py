"""One rank of a run: `python -m trainer.training.worker RUN_DIR/run.json`, started by torchrun."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from shared.errors import ConfigError, TetherError
from trainer.training.assemble import assembled
from trainer.training.distributed import World, world_from_environment
from trainer.training.engine import shutdown
from trainer.training.loop import train
from trainer.training.recorder import Recorder
from trainer.training.run_spec import (
    REFERENCE,
    Outcome,
    OutcomeError,
    OutcomeStatus,
    RunSpec,
    read_spec,
)


def work(spec: RunSpec) -> Outcome:
    """Runs this rank to the end of the run, and says how it ended. Rank 0 writes it down."""
    world = world_from_environment()
    recorder = Recorder(spec.run_dir, writes=world.rank == 0)
    try:
        outcome = _run(spec, world, recorder)
    except TetherError as error:
        # These are the same on every rank (settings, data, model, a judge that refuses), but for a disk
        # that is full for one: then only this rank's log tells.
        recorder.message("error", str(error))
        if world.rank != 0:
            print(f"rank {world.rank}: {error}", file=sys.stderr, flush=True)
        outcome = Outcome(
            status=OutcomeStatus.FAILED,
            error=OutcomeError(code=error.code, message=str(error)),
            step=0,
            trained_tokens=0,
        )
    recorder.outcome(outcome)
    shutdown()
    return outcome


def _run(spec: RunSpec, world: World, recorder: Recorder) -> Outcome:
    if spec.training.ranks not in (None, world.ranks):
        raise ConfigError(
            f"training.ranks is {spec.training.ranks}, but {world.ranks} processes were started"
        )
    with assembled(spec, world, recorder, _stop_on_sigterm().is_set) as run:
        recorder.message("info", f"training {run.steps} steps on {world.ranks} ranks")
        outcome = train(run)
    if world.rank == 0 and outcome.status in (OutcomeStatus.SUCCEEDED, OutcomeStatus.FAILED):
        shutil.rmtree(spec.run_dir / REFERENCE, ignore_errors=True)
    return outcome


def _stop_on_sigterm() -> threading.Event:
    stop = threading.Event()

    def handle(_signum: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    return stop


def main(arguments: list[str]) -> int:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    outcome = work(read_spec(Path(arguments[0])))
    return 1 if outcome.status is OutcomeStatus.FAILED else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
