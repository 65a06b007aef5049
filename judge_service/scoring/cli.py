"""`tether judge score`: one pair, or a file of rows."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from judge_service.ending import end
from judge_service.scoring import options
from judge_service.scoring.options import Who, open_judge, rubric_name
from judge_service.scoring.rows import Row
from judge_service.scoring.run import checked_rows, score_file, score_pair
from judge_service.scoring.store import judgement_of
from shared.errors import ConfigError

SOME_FAILED = 3
"""Exit status where all was done, but some rows have no score."""


def score(
    file: Annotated[
        Path | None, typer.Argument(metavar="[ROWS.jsonl]", help="Rows to grade; - is standard input.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The rows with their scores, in JSONL.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Grade one pair instead of a file.")] = None,
    response: Annotated[str | None, typer.Option()] = None,
    skip_broken: Annotated[bool, typer.Option(help="Leave broken lines out instead of refusing.")] = False,
    rubric: options.RubricName = None,
    rubrics_dir: options.RubricsDir = None,
    url: options.Url = None,
    api_key: options.ApiKey = None,
    model: options.Model = None,
    backend_file: options.BackendFile = None,
    batch_size: options.BatchSize = 32,
    device: options.Device = "auto",
    threads: options.Threads = None,
    patience_s: options.Patience = 120.0,
    controls: options.Controls = True,
    controls_dir: options.ControlsDir = None,
) -> None:
    """Grade one pair (--prompt, --response) or the rows of a file, by a service or by a model in here.

    Rows are {"prompt", "response"} or chats {"messages"} whose last turn is graded. The same command
    again goes on where it was stopped, and judges failed rows again. Exit status 3: some have no score.
    """
    who = Who(
        rubric, rubrics_dir, url, api_key, model, backend_file, batch_size, device, threads, patience_s,
        controls, controls_dir,
    )  # fmt: skip
    one = prompt is not None or response is not None
    if one == (file is not None):
        raise ConfigError("give either --prompt and --response, or a file of rows")
    if file is None:
        if prompt is None or response is None:
            raise ConfigError("a pair needs both --prompt and --response")
        raise typer.Exit(_pair(who, prompt, response))
    if str(file) == "-":
        with tempfile.TemporaryDirectory() as folder:
            rows, scored = Path(folder) / "rows.jsonl", out or Path(folder) / "scored.jsonl"
            with rows.open("wb") as spool:
                shutil.copyfileobj(sys.stdin.buffer, spool)
            status = score_rows(rows, scored, who, skip_broken=skip_broken)
            if out is None:
                with scored.open("rb") as lines:
                    shutil.copyfileobj(lines, sys.stdout.buffer)
        raise typer.Exit(status)
    if out is None:
        raise ConfigError("where to? Give --out SCORED.jsonl")
    if out.resolve() == file.resolve():
        raise ConfigError(f"--out {out} is the file that is read; give another")
    raise typer.Exit(score_rows(file, out, who, skip_broken=skip_broken))


def score_rows(source: Path, out: Path, who: Who, *, skip_broken: bool) -> int:
    """With a progress bar and a summary on standard error; the exit status."""
    console = Console(stderr=True)
    # Before a model is loaded for nothing.
    _, broken, told = checked_rows(source, skip_broken=skip_broken)
    for fault in told:
        console.print(f"left out: {fault}", markup=False, highlight=False, soft_wrap=True)
    if not out.parent.is_dir():
        raise ConfigError(f"--out: there is no folder {out.parent}")
    judge = open_judge(who)

    async def score() -> int:
        try:
            await judge.prepare()
            with _progress(console) as report:
                outcome = await score_file(
                    source, out, judge, rubric_name(who), skip_broken=skip_broken, report=report
                )
        finally:
            await judge.close()
        known = f", {outcome.reused} texts known before" if outcome.reused else ""
        left = f", {broken} broken lines left out" if broken else ""
        console.print(
            f"{outcome.scored} of {outcome.rows} rows scored by {judge.name}{known}{left}: {out}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        if outcome.failed:
            codes = ", ".join(f"{count} {code}" for code, count in sorted(outcome.failed.items()))
            console.print(
                f"no score: {codes}; the same command judges them again", markup=False, soft_wrap=True
            )
        return SOME_FAILED if outcome.failed else 0

    try:
        status = asyncio.run(until_interrupted(score()))
    except KeyboardInterrupt:
        status = None  # before the work began
    if status is None:
        console.print("stopped; the same command goes on from here")
        return 130
    return status


async def until_interrupted(work: Coroutine[Any, Any, int]) -> int | None:
    """Its result; None after SIGINT, when it has ended for sure: asyncio's own handler cancels once, and a
    library may lose that."""
    task, stopped = asyncio.create_task(work), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stopped.set)
    waiting = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        waiting.cancel()
        await end(task)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    bar = Progress(
        TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    task = bar.add_task("judging", total=None)

    def report(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    with bar:
        yield report


def _pair(who: Who, prompt: str, response: str) -> int:
    judge = open_judge(who)
    row = Row(1, prompt, response, {})

    async def run() -> int:
        try:
            await judge.prepare()
            verdict = await score_pair(judge, row)
        finally:
            await judge.close()
        print(json.dumps(judgement_of(row.hash, rubric_name(who), verdict), indent=2))
        return 0 if verdict.status == "scored" else SOME_FAILED

    return asyncio.run(run())
