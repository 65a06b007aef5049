"""`tether size`: how many judge workers a job needs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from shared.errors import ConfigError

if TYPE_CHECKING:
    from trainer.sizing.formula import Judge, Sizing, Workload


def size(
    step_s: Annotated[float, typer.Option(help="Seconds of a step that waits for nothing.")],
    batch_size: Annotated[int, typer.Option(help="Rows a step, over all ranks.")] = 16,
    staleness: Annotated[int, typer.Option("--staleness", "-k", help="K, the bound in steps.")] = 4,
    samples: Annotated[
        int, typer.Option(help="Answers of the model that are judged each step, all sources together.")
    ] = 4,
    rows: Annotated[bool, typer.Option(help="Whether the judge reads the rows themselves, too.")] = True,
    rate: Annotated[float | None, typer.Option(help="Judgements a second of one worker under load.")] = None,
    batch_s: Annotated[float | None, typer.Option(help="Seconds of one batch at the judge.")] = None,
    tokens_per_s: Annotated[
        float | None, typer.Option(help="Instead of --rate: of one worker's share.")
    ] = None,
    tokens_per_item: Annotated[
        float | None, typer.Option(help="Of one judgement: text, reasoning and label; the rubric is cached.")
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of both: http://HOST:PORT/metrics of a worker that has judged; repeatable."
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="What comes of so many; default: the fewest.")] = None,
    headroom: Annotated[float, typer.Option(help="Share of the workers' time to plan for.")] = 0.7,
    gpus_per_worker: Annotated[int, typer.Option(help="GPUs behind one worker's rate.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """How many judge workers keep a job from waiting; docs/operations.md derives the formula.

    Give the judge's speed as --rate and --batch-s, as --tokens-per-s, --tokens-per-item and --batch-s, or let
    it be read from workers that have judged: --metrics.
    """
    from trainer.sizing import formula
    from trainer.sizing.measured import fetch, speed_of

    match (rate, tokens_per_s, metrics):
        case (float(), None, None | []) if batch_s is not None:
            judge = formula.Judge(rate, batch_s)
        case (None, float(), None | []) if batch_s is not None and tokens_per_item:
            judge = formula.from_tokens(tokens_per_s, tokens_per_item, batch_s)
        case (None, None, [_, *_]) if batch_s is None:
            judge = speed_of(fetch(metrics))
        case _:
            raise ConfigError(
                "how fast is the judge? Give --rate and --batch-s; or --tokens-per-s, --tokens-per-item and"
                " --batch-s; or --metrics alone"
            )
    work = formula.Workload(step_s, batch_size, staleness, samples, reads_rows=rows)
    found = formula.size(work, judge, headroom=headroom, gpus_per_worker=gpus_per_worker, workers=workers)
    if as_json:
        print(json.dumps({"work": asdict(work), "judge": asdict(judge), **asdict(found)}))
    else:
        _show(work, judge, found)


def _show(work: Workload, judge: Judge, found: Sizing) -> None:
    from rich.console import Console
    from rich.table import Table

    gpus = f", {found.gpus} GPUs" if found.gpus else ""
    table = Table("", "", show_header=False)
    table.add_row("judge workers", f"{found.workers}{gpus}")
    table.add_row("judgements a step", f"{found.items_per_step}")
    table.add_row("judgements a second", f"{found.needed_per_s:.3g} asked, {found.given_per_s:.3g} brought")
    table.add_row("one worker", f"{judge.per_s:.3g} a second, {judge.batch_s:.3g} s a batch")
    table.add_row(
        "a step's verdicts",
        f"after {found.latency_s:.3g} s; {found.allowed_s:.3g} s are {work.max_staleness} steps",
    )
    table.add_row("a step", f"{found.expected_step_s:.3g} s, at staleness {found.expected_staleness}")
    table.add_row("the job", "never waits" if found.keeps_up else "WAITS for the judge")
    console = Console()
    console.print(table)
    for warning in found.warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True, markup=False)
