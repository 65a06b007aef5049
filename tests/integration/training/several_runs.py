"""Runs one after the other in one set of ranks: `torchrun several_runs.py SPEC...`.

torchrun and DeepSpeed take ten seconds to start, a tiny run takes one.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from trainer.training.distributed import World, world_from_environment
from trainer.training.engine import shutdown
from trainer.training.loop import train
from trainer.training.recorder import Recorder
from trainer.training.run_spec import RunSpec, read_spec
from trainer.training.worker import assembled


def run(spec: RunSpec, world: World) -> None:
    recorder = Recorder(spec.run_dir, writes=world.rank == 0)
    with assembled(spec, world, recorder, lambda: False) as made:
        recorder.outcome(train(made))


def main() -> None:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    world = world_from_environment()
    for path in sys.argv[1:]:
        print(f"--- {path}", flush=True)
        run(read_spec(Path(path)), world)
    shutdown()


if __name__ == "__main__":
    main()
