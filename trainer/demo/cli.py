"""`tether demo`: the whole of Tether on this machine, in minutes."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from trainer.demo import interrupt

if TYPE_CHECKING:
    from trainer.demo.report import Report

INTERRUPTED = 130


def demo(
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Runs; medians are reported.")] = 1,
    out: Annotated[Path, typer.Option(help="Where report.html, report.json and the models go.")] = Path(
        "runs/demo"
    ),
    state_dir: Annotated[
        Path | None,
        typer.Option(
            help="Jobs, files and logs of the services. Default: a new folder in OUT, removed after success."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print report.json on stdout, all else on stderr.")
    ] = False,
) -> None:
    """Fine-tune a tiny model four ways on partly harmful data, and compare what they became."""
    # The imports of torch take seconds; `tether --help` must not.
    from trainer.demo.run import Plan, run_demo

    interrupt.listen()
    console = Console(stderr=as_json)
    # What is not ours to steer (the bars of the world's making) prints on stdout.
    aside = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    try:
        out.mkdir(parents=True, exist_ok=True)
        state = state_dir or Path(tempfile.mkdtemp(prefix="state-", dir=out))
        with aside:
            report = run_demo(Plan(out=out, state_dir=state, seeds=tuple(range(seeds))), console)
        if state_dir is None:
            shutil.rmtree(state)  # checkpoints, mostly: hundreds of MB a seed
    except KeyboardInterrupt:
        console.print("stopped: unfinished jobs are cancelled, every process has ended")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print(report.model_dump_json(indent=1))
    console.print(table(report))
    console.print(
        f"Report: {out / 'report.html'}   (numbers: {out / 'report.json'})",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    console.print(
        "Next:   `tether up` starts the same services for your own data; the README goes on there.",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def table(report: Report) -> Table:
    """For 80 columns; in percent."""
    from trainer.demo.page import cell_of, minutes, seed_text

    several = len(report.seeds) > 1
    shown = Table(
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        title=f"{report.setup.prompts_of_each_kind} held-out prompts of each kind, {seed_text(report.seeds)}",
        caption=f"In percent, {'lowest to highest seed' if several else 'with 95 % intervals'}."
        f" {sum(hold.median for hold in report.holds.values())} of {len(report.holds)} targets hold;"
        f" {minutes(report.seconds)}.",
    )
    shown.add_column("model", no_wrap=True)
    columns = {
        "asr": "ASR, rule",
        "asr_judge": "ASR, judge",
        "task_accuracy": "task right",
        "benign_helpfulness": "benign help",
    }
    for title in columns.values():
        shown.add_column(title, justify="right", no_wrap=True)
    for name, result in report.models.items():
        cells = [cell_of(result, column, several=several) for column in columns]
        values = [f"{cell.value.removesuffix(' %') or '-'} [dim]({cell.beside})[/dim]" for cell in cells]
        shown.add_row(name, *values, style="bold" if name == "adaptive" else None)
    return shown
