"""`tether study`: which settings hold, over seeds, on the embedded world."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.demo import interrupt

if TYPE_CHECKING:
    from trainer.study.results import Result
    from trainer.study.run import Run

INTERRUPTED = 130


def study(
    group: Annotated[
        list[str] | None,
        typer.Argument(
            help="sources, gains, staleness, granularity, rope, harmful, missed, taught, taught-alarms,"
            " taught-delay, taught-reads. Default: all, which takes hours."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100)] = 5,
    prompts: Annotated[int, typer.Option(min=10, max=200, help="Held-out ones of each kind.")] = 100,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Runs at once, a core each.")] = 2,
    out: Annotated[
        Path, typer.Option(help="Results, one folder a run; what is there is not run again.")
    ] = Path("runs/study"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print study.json on stdout, all else on stderr.")
    ] = False,
) -> None:
    """Train a tiny model under a grid of settings and seeds, and say what became of it.

    A run takes about a minute on one core. Stopped with Ctrl-C, the same command goes on from there.
    """
    # The imports of torch take seconds; `tether --help` must not.
    from trainer.study.cases import cases
    from trainer.study.report import summary, table, write
    from trainer.study.run import Plan, run_study

    interrupt.listen()
    console = Console(stderr=as_json)
    chosen = cases(group or [])
    plan = Plan(out.absolute(), chosen, seeds, prompts, parallel)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    try:
        with bar:
            task = bar.add_task("runs", total=len(chosen) * seeds)

            def on_done(run: Run, result: Result) -> None:
                end = result.end
                said = f"ASR {end.asr:.0%}, task {end.task:.0%}" if end else result.status
                bar.console.print(f"{run.case.key}, seed {run.seed}: {said}", highlight=False, markup=False)
                bar.advance(task)

            results = run_study(plan, on_done)
    except KeyboardInterrupt:
        console.print(f"stopped; the same command goes on from what is in {out}")
        raise typer.Exit(INTERRUPTED) from None
    written = write(out, chosen, results, seeds)
    if as_json:
        sys.stdout.write(written[0].read_text(encoding="utf-8"))
    console.print(table(summary(chosen, results), seeds))
    console.print(f"Written: {', '.join(map(str, written))}", highlight=False, markup=False, soft_wrap=True)
