"""`tether probe`: the activation critic, fitted and tried offline."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

app = typer.Typer(help="A linear probe on a frozen model: risk, before it speaks.", no_args_is_help=True)


class CalibrationChoice(StrEnum):
    PLATT = "platt"
    ISOTONIC = "isotonic"


Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The base's transformers folder.")]
Label = Annotated[
    str | None, typer.Option("--label", metavar="KEY", help="Else label, harmful or harm_score.")
]
Folds = Annotated[int, typer.Option(min=2, max=20)]
Seed = Annotated[int, typer.Option()]
Scratch = Annotated[Path | None, typer.Option(help="For the features; else the temporary folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, all else on stderr.")]


@app.command()
def fit(
    model: Model,
    data: Annotated[list[Path], typer.Option("--data", metavar="FILE", help="Labelled JSONL; repeatable.")],
    out: Annotated[Path, typer.Option(help="The probe's folder.")],
    label: Label = None,
    folds: Folds = 5,
    seed: Seed = 0,
    calibration: Annotated[CalibrationChoice, typer.Option()] = CalibrationChoice.PLATT,
    scratch: Scratch = None,
    as_json: AsJson = False,
) -> None:
    """Fit every layer on labelled prompts, choose one by folds, and save it with its thresholds."""
    # The imports of torch take seconds; `tether --help` must not.
    from trainer.probe.run import fit_probe

    console = Console(stderr=as_json)
    with _progress(console) as tell:
        card = fit_probe(
            model,
            data,
            out,
            label=label,
            folds=folds,
            seed=seed,
            calibration=calibration.value,
            scratch=scratch,
            tell=tell,
        )
    if as_json:
        print(card.model_dump_json())
        return
    chosen = card.heads[card.head]
    console.print(
        f"{card.examples} examples, {card.harmful} harmful. Chosen by {card.folds} folds: {card.head}"
        f" (AUROC {chosen.auroc:.3f}, log loss {chosen.log_loss:.4f} on held-out folds)",
        highlight=False,
    )
    for threshold in card.thresholds:
        console.print(
            f"  false positives at most {threshold.target_fpr:.1%}: recall {threshold.recall:.1%}",
            highlight=False,
        )
    console.print(f"written to {out}", highlight=False, soft_wrap=True)


@app.command("eval")
def evaluate(
    model: Model,
    probe: Annotated[Path, typer.Option(metavar="DIR", help="What `tether probe fit` wrote.")],
    train: Annotated[
        list[Path] | None, typer.Option("--train", metavar="FILE", help="The files it was fitted on.")
    ] = None,
    test: Annotated[
        list[Path] | None, typer.Option("--test", metavar="FILE", help="Other labelled files; repeatable.")
    ] = None,
    label: Label = None,
    folds: Folds = 5,
    seed: Seed = 0,
    resamples: Annotated[int, typer.Option(min=20, max=10_000, help="Of the bootstrap.")] = 500,
    out: Annotated[
        Path | None, typer.Option(help="Folder for eval.json, layers.svg, reliability.svg.")
    ] = None,
    png: Annotated[bool, typer.Option("--png", help="Plots as PNG.")] = False,
    scratch: Scratch = None,
    as_json: AsJson = False,
) -> None:
    """Try it on rows it did not learn from, beside controls that read the words alone."""
    from trainer.probe import plots, report
    from trainer.probe.evaluate import Outcome
    from trainer.probe.run import eval_probe
    from trainer.probe.store import load_probe

    console = Console(stderr=as_json)
    with _progress(console) as tell:
        outcomes = eval_probe(
            model,
            probe,
            train or [],
            test or [],
            label=label,
            folds=folds,
            seed=seed,
            resamples=resamples,
            scratch=scratch,
            tell=tell,
        )
    found = json.dumps(report.as_json(load_probe(probe).card, outcomes), indent=1)
    if as_json:
        print(found)
    else:
        console.print(report.table(outcomes))
    tried = [outcome for outcome in outcomes if isinstance(outcome, Outcome)]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "eval.json").write_text(found + "\n", encoding="utf-8")
        if tried:
            ending = "png" if png else "svg"
            plots.save(plots.layers({o.name: o.layers for o in tried}), out / f"layers.{ending}")
            plots.save(plots.reliability(tried), out / f"reliability.{ending}")
        console.print(f"written to {out}", highlight=False, soft_wrap=True)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, float], None]]:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # transformers draws one for loading weights, across ours
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    stages: dict[str, int] = {}

    def tell(stage: str, done: float) -> None:
        if stage not in stages:
            stages[stage] = int(bar.add_task(stage, total=1.0))
        bar.update(list(bar.task_ids)[stages[stage]], completed=done)

    with bar:
        yield tell
