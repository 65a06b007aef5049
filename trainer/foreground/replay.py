"""`tether replay`: every beta of a run, recomputed from its log."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from shared.errors import ConfigError
from trainer.safety.journal import Replayed
from trainer.safety.journal import replay as replay_lines
from trainer.training.run_spec import CONTROLLER_LOG

SHOW_PROGRESS_FROM = 4 * 1024 * 1024
"""Bytes: about a second."""


def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or its controller.jsonl.")],
    as_json: Annotated[bool, typer.Option("--json", help="The result as one JSON object.")] = False,
) -> None:
    """Recompute every beta of a run from its log, bit for bit, with no model and no judge.

    Exit status 1 where the log and the rules differ; the first such step is named.
    """
    path = run / CONTROLLER_LOG if run.is_dir() else run
    if not path.is_file():
        raise ConfigError(f"there is no log {str(path)!r}; name a run's folder, such as state/runs/JOB")
    if path.stat().st_size == 0:
        raise ConfigError(f"{path} is empty: only runs of the method `adaptive` decide anything")
    found = replay_lines(_lines(path))
    if as_json:
        print(json.dumps({"ok": found.difference is None, **asdict(found)}))
    else:
        _tell(found, path)
    if found.difference is not None:
        raise typer.Exit(1)


def _lines(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    bar = Progress(
        TextColumn("replaying"),
        BarColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=size < SHOW_PROGRESS_FROM or not sys.stderr.isatty(),
    )
    with path.open("rb") as file, bar:
        task = bar.add_task("", total=size)
        for number, line in enumerate(file):
            if number % 64 == 0:
                bar.update(task, completed=file.tell())
            yield line


def _tell(found: Replayed, path: Path) -> None:
    if found.resumed_at:
        print(f"resumed {len(found.resumed_at)} times, at steps {', '.join(map(str, found.resumed_at))}")
    if found.torn_line is not None:
        print(f"line {found.torn_line}, the last, is cut short: the run was killed while it wrote")
    difference = found.difference
    if difference is None:
        print(f"{found.decisions} steps, {found.betas} betas: equal, bit for bit")
        return
    step = "before its first step" if difference.step is None else f"step {difference.step}"
    print(
        f"{step} ({path}, line {difference.line}): {difference.what} is {difference.logged!r} in the log"
        f" and {difference.recomputed!r} by the rules"
    )
