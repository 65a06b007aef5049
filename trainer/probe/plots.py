"""Two plots: how well each layer tells harmful from harmless, and how far probabilities hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure

from shared.errors import ConfigError
from trainer.probe.evaluate import LayerScore, Outcome
from trainer.probe.features import POOLINGS

STYLE = {"svg.hashsalt": "tether", "svg.fonttype": "none", "font.size": 9}


def save(figure: Figure, path: Path) -> None:
    """By the path's ending, .svg or .png. Raises ConfigError where it cannot be written."""
    try:
        with matplotlib.rc_context(STYLE):
            if path.suffix == ".svg":
                figure.savefig(path, metadata={"Date": None})  # the same figures, the same bytes
            else:
                figure.savefig(path, dpi=150)
    except OSError as error:
        raise ConfigError(f"the plot cannot be written to {path}: {error.strerror}") from error


def layers(panels: Mapping[str, Sequence[LayerScore]]) -> Figure:
    """AUROC over layers, a panel a split; a dashed line for all layers pooled."""
    figure, grid = _grid(len(panels))
    low = min((score.auroc for scores in panels.values() for score in scores), default=0.5)
    for axes, (name, scores) in zip(grid, panels.items(), strict=True):
        for colour, pooling in enumerate(POOLINGS):
            one = [score for score in scores if score.pooling == pooling and score.layer is not None]
            axes.plot(
                [score.layer for score in one],
                [score.auroc for score in one],
                "o-",
                color=f"C{colour}",
                markersize=3,
                label=pooling,
            )
            for score in scores:
                if score.pooling == pooling and score.layer is None:
                    axes.axhline(score.auroc, color=f"C{colour}", linestyle="--", linewidth=0.8)
        axes.set_title(name, fontsize=8)
        axes.set_ylim(min(0.5, low) - 0.02, 1.02)
        axes.set_xlabel("layer (dashed: all, pooled)", fontsize=8)
        axes.grid(alpha=0.3)
    grid[0].set_ylabel("AUROC, held-out rows")
    grid[0].legend(fontsize=7, loc="lower right")
    return figure


def reliability(outcomes: Sequence[Outcome]) -> Figure:
    """Share harmful over the probe's probability, a panel a split; a dot's area is its rows."""
    figure, grid = _grid(len(outcomes))
    for axes, outcome in zip(grid, outcomes, strict=True):
        bins = outcome.reliability.bins
        axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
        axes.plot([b.mean_probability for b in bins], [b.harmful for b in bins], color="C0", linewidth=0.8)
        axes.scatter(
            [b.mean_probability for b in bins],
            [b.harmful for b in bins],
            s=[8 + 120 * b.rows / outcome.tested for b in bins],
            color="C0",
        )
        axes.set_title(f"{outcome.name}: ECE {outcome.reliability.ece.value:.3f}", fontsize=8)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axes.set_xlabel("probability", fontsize=8)
        axes.grid(alpha=0.3)
    grid[0].set_ylabel("share that is harmful")
    return figure


def _grid(panels: int) -> tuple[Figure, list[Any]]:
    columns = max(1, min(4, panels))
    rows = -(-max(1, panels) // columns)
    figure = Figure(figsize=(3.0 * columns, 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    flat = list(grid.ravel())
    for axes in flat[panels:]:
        axes.set_visible(False)
    return figure, flat[: max(1, panels)]
