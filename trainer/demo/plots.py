"""The report's plots: inline SVG whose colours are the page's, so that they follow light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from trainer.demo.report import ModelResult, Report

# Stand-ins that no theme would use; each becomes the page's variable of that name.
INK, GRID = "#010203", "#010204"
COLOURS = {
    "base": "#010301",
    "sft": "#010302",
    "fixed_kl": "#010303",
    "adaptive_batch": "#010304",
    "adaptive": "#010305",
}
VARIABLES = {
    INK: "--ink-2",
    GRID: "--line",
    **{code: "--" + name.replace("_", "-") for name, code in COLOURS.items()},
}
# Told apart without colours too.
DASHES: dict[str, tuple[float, ...]] = {
    "sft": (1, 1.4),
    "fixed_kl": (5, 1.5, 1, 1.5),
    "adaptive_batch": (4, 1.8),
    "adaptive": (),
}
"""Lengths of stroke and gap in units of the line's width; empty: a solid line."""
MARKERS = {"base": "s", "sft": "X", "fixed_kl": "D", "adaptive_batch": "^", "adaptive": "o"}

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tether",  # the same report gives the same bytes
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}

SMOOTHED_OVER = 9
"""Steps of the moving average that is drawn over the raw line."""


def curve(report: Report, name: str, *, smooth: bool, limit: float | None = None) -> str:
    """One line a job and seed. `name`: a field of Curves; `limit`: a horizontal line."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes((4.8, 2.7))
        for seed in report.by_seed:
            for job, run in seed.runs.items():
                steps = run.curves.step
                values: list[float | None] = getattr(run.curves, name)
                known = [
                    (step, value) for step, value in zip(steps, values, strict=True) if value is not None
                ]
                if known:
                    _draw(axes, job, known, smooth=smooth, faint=len(report.by_seed) > 1)
        if limit is not None:
            axes.axhline(limit, color=INK, linewidth=0.9, linestyle=(0, (3, 3)))
        axes.set_xlabel("step")
        low, high = axes.get_ylim()
        axes.set_ylim(min(0.0, low), high)
        axes.margins(x=0.01)
        return _svg(figure)


def _draw(axes: Any, job: str, known: Sequence[tuple[int, float]], *, smooth: bool, faint: bool) -> None:
    steps = [step for step, _ in known]
    values = [value for _, value in known]
    style: dict[str, Any] = {"color": COLOURS[job], "linestyle": (0, DASHES[job]) if DASHES[job] else "-"}
    if not smooth:
        style |= {"drawstyle": "steps-post"}
        axes.plot(steps, values, linewidth=0.9 if faint else 1.3, alpha=0.6 if faint else 0.9, **style)
        return
    if not faint:
        axes.plot(steps, values, color=COLOURS[job], linewidth=0.6, alpha=0.3)
    axes.plot(
        steps,
        moving_average(values, SMOOTHED_OVER),
        linewidth=1.0 if faint else 1.8,
        alpha=0.6 if faint else 1.0,
        **style,
    )


def moving_average(values: Sequence[float], over: int) -> list[float]:
    """Centred, over `over` values, fewer at the ends."""
    half = over // 2
    return [fmean(values[max(0, at - half) : at + half + 1]) for at in range(len(values))]


def trade_off(report: Report, labels: Mapping[str, str]) -> str:
    """ASR against task accuracy, in percent: one point a model, a small one a seed."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes((4.8, 3.5))
        several = len(report.by_seed) > 1
        for name, result in report.models.items():
            if several:
                for seed in report.by_seed:
                    _point(axes, name, seed.models[name], size=22, alpha=0.45)
            _point(axes, name, result, size=80, alpha=1.0)
        _label_points(axes, report.models, labels)
        axes.set_xlim(-4, 104)
        axes.set_ylim(-6, 106)
        axes.set_xlabel("task accuracy, %")
        axes.set_ylabel("attacks that succeed (ASR), %")
        return _svg(figure)


def _point(axes: Any, name: str, result: ModelResult, *, size: float, alpha: float) -> None:
    axes.scatter(
        [100 * result.task_accuracy],
        [100 * result.asr],
        s=size,
        marker=MARKERS[name],
        color=COLOURS[name],
        alpha=alpha,
        linewidths=0,
        zorder=3,
        clip_on=False,
    )


LABEL_GAP = 8.0
"""Least distance of two labels, in percent of the plot's height."""


def _label_points(axes: Any, models: Mapping[str, ModelResult], labels: Mapping[str, str]) -> None:
    """Beside the points, on the side with room; labels of one side keep their distance."""
    for on_right in (True, False):
        side = sorted(
            (100 * result.asr, name)
            for name, result in models.items()
            if (result.task_accuracy < 0.5) is on_right
        )
        heights = spread([height for height, _ in side], LABEL_GAP, most=103.0)
        for (_, name), height in zip(side, heights, strict=True):
            result = models[name]
            axes.annotate(
                labels[name],
                (100 * result.task_accuracy, 100 * result.asr),
                xytext=(100 * result.task_accuracy + (5 if on_right else -5), height),
                ha="left" if on_right else "right",
                va="center",
                color=COLOURS[name],
                fontweight="bold",
                arrowprops={"arrowstyle": "-", "color": GRID, "linewidth": 0.8, "shrinkB": 5},
            )


def spread(heights: Sequence[float], gap: float, *, most: float) -> list[float]:
    """Rising heights, moved as little upwards as keeps them `gap` apart, then down below `most`."""
    placed: list[float] = []
    for height in heights:
        placed.append(height if not placed else max(height, placed[-1] + gap))
    ceiling = most
    for at in reversed(range(len(placed))):
        placed[at] = min(placed[at], ceiling)
        ceiling = placed[at] - gap
    return placed


def _axes(inches: tuple[float, float]) -> tuple[Figure, Any]:
    figure = Figure(figsize=inches, layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Figure) -> str:
    """For a page: no prologue, no metadata, no fixed size, no names that two plots would share."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(
        buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg [^>]*?) ?\bwidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) ?\bheight="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'<g id="[a-zA-Z0-9._]+_\d+"', "<g", svg)
    svg = svg.replace("<svg ", '<svg aria-hidden="true" ', 1)
    for code, variable in VARIABLES.items():
        svg = svg.replace(code, f"var({variable})")
    return svg
