"""`tether train`: one run in the foreground, through the same worker as the service's jobs."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shared.errors import ConfigError, ServiceError
from shared.safety import Adaptive
from trainer.data.canaries import load_canaries
from trainer.foreground.config import JudgeSettings, TrainConfig, load_config
from trainer.jobs.launcher import LOG_FILE, RunProcess, TorchrunLauncher
from trainer.jobs.resolve import with_ranks
from trainer.jobs.tail import last_lines
from trainer.models.inspect import describe, local_folder
from trainer.models.registry import BaseEntry, PathSource, load_registry, registry_path
from trainer.training.recorder import drop_half_line
from trainer.training.run_spec import (
    EVENTS_FILE,
    OUTCOME_FILE,
    RUN_EVENT,
    RUN_FILE,
    Base,
    Canaries,
    Judge,
    MessageEvent,
    MetricsEvent,
    Outcome,
    OutcomeStatus,
    RunSpec,
)

WAITS_FOR_JUDGE = 75
"""Exit status of a run that was parked (EX_TEMPFAIL): the same command goes on from there."""

POLL_S = 0.1


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The run; see docs/train.md.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]", help="Such as training.steps=100.")
    ] = None,
    state_dir: Annotated[
        Path, typer.Option(envvar="TETHER_STATE_DIR", help="Where models.yaml lies.")
    ] = Path("state"),
) -> None:
    """Run one fine-tune in the foreground; no service but a judge, or none with scores from a file.

    Run it under torchrun or srun and each process is a rank; by itself it starts the ranks.
    The same command again goes on from the last checkpoint.
    """
    settings = load_config(config, overrides or [])
    if "RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        raise typer.Exit(_as_rank(settings, state_dir))
    raise typer.Exit(_with_ranks_of_our_own(settings, state_dir))


def make_spec(settings: TrainConfig, state_dir: Path, ranks: int | None) -> RunSpec:
    """Raises ConfigError or ModelError naming what is wrong."""
    if isinstance(settings.safety.method, Adaptive) and settings.judge is None and settings.scores == "judge":
        raise ConfigError(
            'safety.method adaptive asks a judge: set judge.url, or scores = "file" where the rows carry'
            " harm_score"
        )
    for name in ("training_file", "validation_file"):
        path = getattr(settings, name)
        if path is not None and not path.is_file():
            raise ConfigError(f"{name}: there is no file {str(path)!r}")
    model_id, entry = _base(settings.model, state_dir)
    fields = {name: getattr(entry.training, name) for name in entry.training.model_fields_set}
    fields |= {name: getattr(settings.training, name) for name in settings.training.model_fields_set}
    training = settings.training.model_validate(fields)
    if ranks is not None:
        training = training.model_copy(update={"ranks": ranks})
    judge = settings.judge
    return RunSpec(
        job_id=f"train-{settings.output_dir.name}",
        run_dir=settings.output_dir.absolute(),
        base=Base(
            id=model_id,
            path=local_folder(entry, model_id, settings.output_dir.absolute() / "base"),
            context_length=entry.context_length,
            lora_targets=entry.lora_targets,
        ),
        train_file=settings.training_file.absolute(),
        valid_file=settings.validation_file.absolute() if settings.validation_file else None,
        safety=settings.safety,
        training=training,
        seed=settings.seed,
        judge=None
        if judge is None
        else Judge(
            url=judge.url,
            rubric=judge.rubric,
            api_key=judge.api_key_file.read_text(encoding="utf-8").strip() if judge.api_key_file else None,
        ),
        canaries=None if settings.canaries is None else _canaries(settings.canaries, settings.judge),
        trust_file_scores=settings.scores == "file",
    )


def _canaries(canaries: Canaries, judge: JudgeSettings | None) -> Canaries:
    if judge is None:
        raise ConfigError("canaries need a judge that reads the answers: set judge.url too")
    load_canaries(canaries.file)
    return canaries.model_copy(update={"file": canaries.file.absolute()})


def _base(model: str, state_dir: Path) -> tuple[str, BaseEntry]:
    if Path(model).is_dir():
        name = Path(model).resolve().name
        return name, describe(name, PathSource(path=Path(model).absolute()))
    return model, load_registry(registry_path(state_dir)).get(model)


def _as_rank(settings: TrainConfig, state_dir: Path) -> int:
    """One rank among those that torchrun or srun started."""
    from trainer.training.distributed import world_from_environment
    from trainer.training.worker import work

    world = world_from_environment()
    spec = make_spec(settings, state_dir, world.ranks)
    spec.run_dir.mkdir(parents=True, exist_ok=True)
    follower = None
    if world.rank == 0:
        _refuse_finished(spec)
        drop_half_line(spec.run_dir / EVENTS_FILE)
        (spec.run_dir / OUTCOME_FILE).unlink(missing_ok=True)
        follower = _Follower(spec, Console(stderr=True))
        threading.Thread(target=follower.run, daemon=True).start()
    outcome = work(spec)
    if follower is not None:
        follower.stop()
        _tell(outcome, spec, follower.console)
    return _exit_status(outcome)


def _with_ranks_of_our_own(settings: TrainConfig, state_dir: Path) -> int:
    launcher = TorchrunLauncher()
    spec = make_spec(settings, state_dir, None)
    if spec.training.nnodes > 1:
        raise ConfigError(
            f"training.nnodes is {spec.training.nnodes}: start tether train on each machine with torchrun or"
            " srun, as docs/train.md shows"
        )
    spec = spec.model_copy(update={"training": with_ranks(spec.training, launcher.devices)})
    spec.run_dir.mkdir(parents=True, exist_ok=True)
    _refuse_finished(spec)
    drop_half_line(spec.run_dir / EVENTS_FILE)
    (spec.run_dir / OUTCOME_FILE).unlink(missing_ok=True)
    run_file = spec.run_dir / RUN_FILE
    run_file.touch(mode=0o600)  # it may hold the judge's key
    run_file.write_text(spec.model_dump_json(indent=2), encoding="utf-8")
    console = Console(stderr=True)
    console.print(
        f"{spec.base.id}: {spec.training.ranks} ranks, ZeRO-{spec.training.zero_stage}, {spec.run_dir}"
    )
    process = launcher.start(spec.run_dir, spec.training.ranks or 1)
    try:
        _wait(process, _Follower(spec, console))
    finally:
        if process.poll() is None:
            process.kill()
    outcome_file = spec.run_dir / OUTCOME_FILE
    if not outcome_file.exists():
        raise ServiceError(
            f"a rank died (exit status {process.poll()}); the end of {spec.run_dir / LOG_FILE}:\n"
            f"{last_lines(spec.run_dir / LOG_FILE)}"
        )
    outcome = Outcome.model_validate_json(outcome_file.read_text(encoding="utf-8"))
    _tell(outcome, spec, console)
    return _exit_status(outcome)


def _wait(process: RunProcess, follower: _Follower) -> None:
    """Until the run ends. Ctrl-C asks for a checkpoint and an end; a second one ends it at once."""
    asked = False

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            process.kill()
            return
        asked = True
        follower.console.print("stopping at the next step, with a checkpoint (Ctrl-C again: at once)")
        process.stop()

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with follower.progress:
            while process.poll() is None:
                follower.read()
                time.sleep(POLL_S)
            follower.read()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Follower:
    """Draws a run's events as a progress bar, and prints what it says."""

    def __init__(self, spec: RunSpec, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self.progress.add_task("starting", total=None, values="")
        self._path = spec.run_dir / EVENTS_FILE
        self._offset = self._path.stat().st_size if self._path.exists() else 0
        self._stop = threading.Event()

    def run(self) -> None:
        with self.progress:
            while not self._stop.wait(POLL_S):
                self.read()

    def stop(self) -> None:
        self._stop.set()
        self.read()

    def read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            chunk = file.read()
        whole = chunk[: chunk.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            match RUN_EVENT.validate_json(line):
                case MetricsEvent() as step:
                    values = f"loss {step.loss:.3f}  beta {step.beta:.2f}  risk {step.risk:.2f}"
                    if step.staleness is not None:
                        values += f"  staleness {step.staleness}"
                    self.progress.update(
                        self._task,
                        description="training",
                        completed=step.step,
                        total=step.steps,
                        values=values,
                    )
                case MessageEvent(level=level, message=message):
                    self.console.print(message if level == "info" else f"{level}: {message}", markup=False)


def _refuse_finished(spec: RunSpec) -> None:
    outcome_file = spec.run_dir / OUTCOME_FILE
    if not outcome_file.exists():
        return
    outcome = Outcome.model_validate_json(outcome_file.read_text(encoding="utf-8"))
    if outcome.status is OutcomeStatus.SUCCEEDED:
        raise ConfigError(
            f"{spec.run_dir} holds a finished run; choose another output_dir, or remove that folder"
        )


def _tell(outcome: Outcome, spec: RunSpec, console: Console) -> None:
    if outcome.error is not None:
        console.print(f"{outcome.status.value}: {outcome.error.message}", markup=False)
    if outcome.status is OutcomeStatus.PARKED:
        console.print("the run waits for the judge; the same command goes on when it is back")
    elif outcome.status is OutcomeStatus.STOPPED:
        console.print(f"stopped after step {outcome.step}; the same command goes on from there")
    if outcome.artifact is not None:
        if outcome.published_step is not None:
            console.print(f"the model is the checkpoint of step {outcome.published_step}", markup=False)
        console.print(f"model: {spec.run_dir / outcome.artifact}", markup=False)


def _exit_status(outcome: Outcome) -> int:
    match outcome.status:
        case OutcomeStatus.SUCCEEDED:
            return 0
        case OutcomeStatus.PARKED:
            return WAITS_FOR_JUDGE
        case OutcomeStatus.STOPPED:
            return 128 + signal.SIGINT
        case OutcomeStatus.FAILED:
            return 1
