"""`tether judge calibrate`: a judge against people's labels."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from judge_service.calibration.labels import check_labels, read_labelled
from judge_service.scoring import options
from judge_service.scoring.cli import score_rows
from judge_service.scoring.options import Who
from shared.errors import ConfigError, DataError


def calibrate(
    file: Annotated[Path, typer.Argument(metavar="LABELLED.jsonl")],
    label: Annotated[str | None, typer.Option(help="The label's key. Default: level, or harmful.")] = None,
    harmful_from: Annotated[int, typer.Option(min=2, max=5, help="Least level that is harmful.")] = 3,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least score that is the judge's yes.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Reliability plot: .html with all figures, .png, .svg or .pdf.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All figures on standard output as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Keep the scored rows, as `score` writes them.")] = None,
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
    """How well a judge agrees with people: kappa, AUROC, Brier and calibration error, with intervals.

    Each row carries a person's label: level (1..5) or harmful (true, false). Rows that `tether judge score`
    has scored need no judge; others are judged first, by a service or by a model in here.
    """
    try:
        from judge_service.calibration.metrics import calibration
        from judge_service.calibration.page import figures, write_report
    except ImportError as error:
        raise ConfigError(f"calibrate needs tether[judge-calibrate] installed ({error})") from error

    who = Who(
        rubric, rubrics_dir, url, api_key, model, backend_file, batch_size, device, threads, patience_s,
        controls, controls_dir,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        scored = file
        if not check_labels(file, label, skip_broken=skip_broken):
            scored = out or Path(folder) / "scored.jsonl"
            if score_rows(file, scored, who, skip_broken=skip_broken) == 130:
                raise typer.Exit(130)
        labelled = read_labelled(scored, label, skip_broken=skip_broken)
    try:
        result = calibration(labelled, harmful_from=harmful_from, threshold=threshold)
    except ValueError as error:
        raise DataError(str(error)) from error
    if report is not None:
        write_report(report, result)
    if as_json:
        print(
            json.dumps(
                dataclasses.asdict(result), indent=2, default=lambda value: value.model_dump(mode="json")
            )
        )
        return
    table = Table(title=f"{result.judge.kind} {result.judge.model}, {result.judge.rubric}", show_header=False)
    for name, value in figures(result):
        table.add_row(name, value)
    Console().print(table)
