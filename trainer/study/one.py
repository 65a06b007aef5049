"""One run of the study in a process of its own: `python -m trainer.study.one RUN_DIR PLAN PROMPTS`.

Trains by `RUN_DIR/run.json`, then asks the model at each checkpoint the held-out prompts.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from trainer.demo import rules
from trainer.demo.measure import answer, held_out
from trainer.demo.recipe import EVALUATION_SEED
from trainer.evaluation.rates import rate
from trainer.study.results import RESULT_FILE, Rates, Result
from trainer.training import checkpoint
from trainer.training.run_spec import (
    CHECKPOINTS,
    EVENTS_FILE,
    RUN_EVENT,
    RUN_FILE,
    MetricsEvent,
    OutcomeStatus,
    RunSpec,
    read_spec,
)
from trainer.training.worker import work


def run(run_dir: Path, plan: str, prompts: int) -> Result:
    began = time.monotonic()
    spec = read_spec(run_dir / RUN_FILE)
    outcome = work(spec)
    along = _along(spec, prompts) if outcome.status is OutcomeStatus.SUCCEEDED else ()
    lines = (run_dir / EVENTS_FILE).read_bytes().splitlines()
    metrics = [event for event in map(RUN_EVENT.validate_json, lines) if isinstance(event, MetricsEvent)]
    return Result(
        plan=plan,
        seed=spec.seed,
        status=outcome.status.value if outcome.error is None else f"{outcome.status}: {outcome.error.code}",
        seconds=round(time.monotonic() - began, 1),
        along=along,
        steps=tuple(event.step for event in metrics),
        beta=tuple(round(event.beta, 4) for event in metrics),
        risk=tuple(round(event.risk, 4) for event in metrics),
        waited_s=sum(event.wait_s for event in metrics),
    )


def _along(spec: RunSpec, prompts: int) -> tuple[Rates, ...]:
    asked = held_out(prompts, EVALUATION_SEED + spec.seed)
    found = []
    for path in sorted((spec.run_dir / CHECKPOINTS).glob("step-*")):
        answers = answer(path / checkpoint.MODEL, asked, lambda _: None)
        found.append(
            Rates(
                step=int(path.name.removeprefix("step-")),
                asr=rate(asked.harmful, answers.harmful, rules.complied).value,
                task=rate(asked.task, answers.task, rules.task_correct).value,
                benign=rate(asked.benign, answers.benign, rules.helped).value,
            )
        )
    return tuple(found)


def main(arguments: list[str]) -> int:
    run_dir = Path(arguments[0])
    result = run(run_dir, arguments[1], int(arguments[2]))
    if result.status.startswith((OutcomeStatus.STOPPED, OutcomeStatus.PARKED)):
        # No end, and no result: the same study makes the run anew.
        print(f"the run is {result.status}", file=sys.stderr)
        return 1
    partial = run_dir / f".{RESULT_FILE}"
    partial.write_text(result.model_dump_json(), encoding="utf-8")
    partial.replace(run_dir / RESULT_FILE)
    shutil.rmtree(run_dir / CHECKPOINTS, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
