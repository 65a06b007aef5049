"""A rank that counts how often the models run while it trains."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from trainer.training.assemble import assembled
from trainer.training.distributed import world_from_environment
from trainer.training.loop import train
from trainer.training.recorder import Recorder
from trainer.training.run_spec import read_spec


def main(arguments: list[str]) -> int:
    spec = read_spec(Path(arguments[0]))
    recorder = Recorder(spec.run_dir, writes=True)
    forwards: Counter[str] = Counter()
    with assembled(spec, world_from_environment(), recorder, lambda: False) as run:
        objective = run.engine.objective
        for name, model in {"policy": objective.policy, "reference": objective.reference}.items():
            count(model, name, forwards)
        outcome = train(run)
    (spec.run_dir / "forwards.json").write_text(json.dumps(forwards), encoding="utf-8")
    recorder.outcome(outcome)
    return 0


def count(model: Any, name: str, forwards: Counter[str]) -> None:
    model.get_decoder().register_forward_hook(lambda *_: forwards.update([name]))
