"""The worker, with SIGKILL at one place of its first save: which one stands in `kill-at`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from trainer.training import checkpoint, worker
from trainer.training.engine import Engine


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(arguments: list[str]) -> int:
    match (Path(arguments[0]).parent / "kill-at").read_text():
        case "engine written":
            write_engine = Engine.save

            def save(engine: Engine, directory: Path) -> None:
                write_engine(engine, directory)
                die()

            Engine.save = save  # type: ignore[method-assign]
        case "model written":
            write_model = checkpoint.save_model

            def save_model(*given: Any) -> None:
                write_model(*given)
                die()

            checkpoint.save_model = save_model
        case "renamed":
            checkpoint._prune = lambda *_: die()
    return worker.main(arguments)
