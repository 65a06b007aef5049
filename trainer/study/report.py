"""The study's results: a table, `study.json`, and plots that a browser or a page in `docs/` shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from trainer.study.cases import GROUPS, Case
from trainer.study.results import Rates, Result, Spread, spread

RATES = ("asr", "task", "benign")


def summary(cases: Sequence[Case], results: Mapping[str, Sequence[Result]]) -> list[dict[str, Any]]:
    """One entry a case: what each rate came to over the seeds, in [0,1]."""
    rows = []
    for case in cases:
        found = results[case.key]
        ends = [result.end for result in found if result.end is not None]
        swings = [result.swing for result in found if result.swing is not None]
        rows.append(
            {
                "group": case.group,
                "case": case.name,
                "harmful": case.harmful,
                "missed": case.missed,
                "alarms": case.alarms,
                "method": case.method.model_dump(mode="json"),
                "ended": [result.status for result in found],
                **{name: _dump(spread([getattr(end, name) for end in ends])) for name in RATES},
                "swing": _dump(spread(swings)),
            }
        )
    return rows


def _dump(value: Spread | None) -> dict[str, float] | None:
    return None if value is None else value.model_dump()


def table(rows: Sequence[Mapping[str, Any]], seeds: int) -> Table:
    shown = Table(
        box=box.SIMPLE, padding=(0, 1, 0, 0), title=f"median (lowest-highest) of {seeds} seeds, in percent"
    )
    for title in ("", "case", "ASR", "swing", "task right", "benign help", "did not succeed"):
        shown.add_column(title, justify="left" if title in ("", "case") else "right")
    last = None
    for row in rows:
        failed = sum(ended != "succeeded" for ended in row["ended"])
        shown.add_row(
            row["group"] if row["group"] != last else "",
            row["case"],
            *(_cell(row[name]) for name in ("asr", "swing", "task", "benign")),
            str(failed) if failed else "",
        )
        last = row["group"]
    return shown


def _cell(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value['median']:.3g} ({100 * value['low']:.3g}-{100 * value['high']:.3g})"


def write(
    out: Path, cases: Sequence[Case], results: Mapping[str, Sequence[Result]], seeds: int
) -> list[Path]:
    """`study.json`, and for each group `GROUP.svg`. Returns what was written."""
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "study.json"]
    rows = summary(cases, results)
    written[0].write_text(json.dumps({"seeds": seeds, "cases": rows}, indent=1) + "\n", encoding="utf-8")
    for group, (question, _) in GROUPS.items():
        chosen = [case for case in cases if case.group == group]
        if chosen:
            written.append(out / f"{group}.svg")
            _plot(question, chosen, results).savefig(written[-1], format="svg", metadata={"Date": None})
    return written


def _plot(question: str, cases: Sequence[Case], results: Mapping[str, Sequence[Result]]) -> Figure:
    """Where the seeds end, and how ASR and beta went on the way."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    figure.suptitle(question, fontsize=11)
    ends, way, betas = figure.subplots(1, 3, width_ratios=[1.3, 1, 1])
    for at, case in enumerate(cases):
        found = [result for result in results[case.key] if result.along]
        for offset, (name, marker) in enumerate(zip(RATES, "ovs", strict=True)):
            values = [100 * getattr(result.along[-1], name) for result in found]
            places = [at + (offset - 1) * 0.22] * len(values)
            ends.plot(
                places,
                values,
                marker,
                color=f"C{offset}",
                alpha=0.6,
                markersize=4,
                label=None if at else name,
            )
        if found:
            _way(way, found, f"C{at}", case.name)
            _beta(betas, found, f"C{at}")
    ends.set_xticks(range(len(cases)), [case.name for case in cases], rotation=30, ha="right", fontsize=7)
    ends.set_ylabel("%, at the end")
    ends.set_ylim(-4, 104)
    if ends.lines:
        ends.legend(fontsize=7)
    way.set_xlabel("step")
    way.set_ylabel("ASR, %, median")
    way.set_ylim(-4, 104)
    if way.lines:
        way.legend(fontsize=6)
    betas.set_xlabel("step")
    betas.set_ylabel("mean beta, median")
    betas.set_ylim(-0.04, 1.04)
    return figure


def _way(axes: Any, found: Sequence[Result], colour: str, name: str) -> None:
    by_step: dict[int, list[Rates]] = {}
    for result in found:
        for rates in result.along:
            by_step.setdefault(rates.step, []).append(rates)
    steps = sorted(by_step)
    medians = [spread([rates.asr for rates in by_step[step]]) for step in steps]
    axes.plot(steps, [100 * m.median for m in medians if m], "o-", color=colour, markersize=3, label=name)
    axes.fill_between(
        steps,
        [100 * m.low for m in medians if m],
        [100 * m.high for m in medians if m],
        color=colour,
        alpha=0.1,
        linewidth=0,
    )


def _beta(axes: Any, found: Sequence[Result], colour: str) -> None:
    steps = found[0].steps
    columns = zip(*(result.beta for result in found), strict=True)
    medians = [spread(list(column)) for column in columns]
    axes.plot(steps, [m.median for m in medians if m], color=colour, linewidth=0.9)
