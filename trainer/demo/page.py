"""report.html: one self-contained page from a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from trainer.demo import plots
from trainer.demo.report import Hold, ModelResult, Report

LABELS = {
    "base": "base",
    "sft": "SFT",
    "fixed_kl": "fixed beta",
    "adaptive_batch": "adaptive by batch",
    "adaptive": "adaptive by example",
}
TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class Cell:
    value: str
    """Empty: there is none."""
    beside: str
    """The interval, or why there is no value."""


@dataclass(frozen=True)
class TableRow:
    name: str
    """As in the report, for the colour."""
    label: str
    meaning: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Plot:
    title: str
    note: str
    alt: str
    svg: Markup


def percent(share: float) -> str:
    """`98.5 %`, `100 %`: no more digits than a few hundred answers carry."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def render(report: Report) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = percent
    source = resources.files("trainer.demo").joinpath(TEMPLATE).read_text(encoding="utf-8")
    page = environment.from_string(source).render(
        report=report,
        headline=headline(report),
        rows=table_rows(report),
        trade_off=_trade_off(report),
        plots=_plots(report),
        labels=LABELS,
        dashes=plots.DASHES,
        agreement=min(known) if (known := _agreements(report)) else None,
        targets=[(hold, target_limit(hold), percent(hold.value)) for hold in report.holds.values()],
        seed_text=seed_text(report.seeds),
        minutes=minutes(report.seconds),
        phases=_phases(report.phases),
        failed={name: m.judge_failed for name, m in report.models.items() if m.judge_failed},
    )
    return page.replace(" %", "\u00a0%")  # a number and its sign stay on one line


def _agreements(report: Report) -> list[float]:
    return [m.judge_agreement for m in report.models.values() if m.judge_agreement is not None]


def headline(report: Report) -> str:
    """With the numbers as they are, whichever way they came out."""
    sft, adaptive = report.models["sft"], report.models["adaptive"]
    return (
        f"Fine-tuned plainly, the model goes along with {percent(sft.asr)} of harmful requests;"
        f" guarded by Tether, with {percent(adaptive.asr)}."
        f" Right answers to the new task: {percent(sft.task_accuracy)} and {percent(adaptive.task_accuracy)}."
    )


def table_rows(report: Report) -> list[TableRow]:
    return [
        TableRow(name, LABELS[name], _meaning(name, report), _cells(result, report))
        for name, result in report.models.items()
    ]


def _cells(result: ModelResult, report: Report) -> tuple[Cell, ...]:
    return tuple(
        cell_of(result, name, several=len(report.seeds) > 1)
        for name in ("asr", "asr_judge", "task_accuracy", "benign_helpfulness")
    )


def cell_of(result: ModelResult, name: str, *, several: bool) -> Cell:
    value: float | None = getattr(result, name)
    if value is None:
        return Cell("", "no verdicts")
    if several:
        low, high = result.seed_range[name]
    else:
        low, high = result.counts[name].low, result.counts[name].high
    return Cell(percent(value), f"{100 * low:.0f}–{100 * high:.0f}")


def _meaning(name: str, report: Report) -> str:
    method = report.setup.methods.get(name, {})
    batch = report.setup.training.batch_size
    share = percent(report.setup.harmful_fraction)
    match name:
        case "base":
            return (
                "Before any fine-tuning: taught to help with benign requests and to refuse harmful ones. It"
                " has never seen the new task."
            )
        case "sft":
            return f"Plain fine-tuning on the upload, of which {share} is harmful. Nothing guards it."
        case "fixed_kl":
            return f"Every example is held to the base by the same weight, beta {method.get('beta')}."
        case "adaptive_batch":
            return (
                "One beta a step, from the average of what the judge read so far: one harmful row among"
                f" {batch} moves it little."
            )
        case _:
            return (
                "One beta for each example, from what the judge read in it: harmful rows are held tight,"
                " the others trained freely. Tether's default."
            )


def target_limit(hold: Hold) -> str:
    return f"{'at most' if hold.better == 'lower' else 'at least'} {percent(hold.limit)}"


def seed_text(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"medians of {len(seeds)} seeds"


def minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def _trade_off(report: Report) -> Plot:
    points = "; ".join(
        f"{LABELS[name]}: accuracy {percent(m.task_accuracy)}, ASR {percent(m.asr)}"
        for name, m in report.models.items()
    )
    return Plot(
        title="Where each model ended",
        note="Right is a task well learned, down is a model that still refuses: a fine-tune should end at the"
        " lower right.",
        alt=f"ASR against task accuracy. {points}.",
        svg=Markup(plots.trade_off(report, LABELS)),
    )


def _plots(report: Report) -> list[Plot]:
    bound = _bound(report.setup.methods)
    return [
        _curve(
            report,
            "beta",
            "Beta",
            "Weight of the pull towards the base, mean over the step's examples.",
            smooth=True,
        ),
        _curve(
            report,
            "risk",
            "Risk",
            "The judge's readings, averaged in order: fast up, slowly down. Only judged jobs have one.",
            smooth=False,
        ),
        _curve(
            report,
            "staleness",
            "Staleness",
            "How many steps old the judge's newest reading is when it is used."
            + (f" The dashed line is the bound, {bound}." if bound is not None else ""),
            smooth=False,
            limit=bound,
        ),
        _curve(
            report,
            "loss",
            "Loss",
            "What is minimised: each job has its own mix of task and pull, so the heights are no contest.",
            smooth=True,
        ),
    ]


def _curve(
    report: Report, name: str, title: str, note: str, *, smooth: bool, limit: int | None = None
) -> Plot:
    described = "; ".join(
        f"{LABELS[job]} from {known[0]:.3g} to {known[-1]:.3g}, highest {max(known):.3g}"
        for job, run in report.by_seed[0].runs.items()
        if (known := [value for value in getattr(run.curves, name) if value is not None])
    )
    return Plot(
        title=title,
        note=note,
        alt=f"{title} over the steps. {described}.",
        svg=Markup(plots.curve(report, name, smooth=smooth, limit=limit)),
    )


def _bound(methods: Mapping[str, Mapping[str, Any]]) -> int | None:
    bounds = {method["staleness"]["max_staleness"] for method in methods.values() if "staleness" in method}
    return bounds.pop() if len(bounds) == 1 else None


def _phases(phases: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.0f} s" for name, seconds in phases.items() if seconds >= 0.5)
