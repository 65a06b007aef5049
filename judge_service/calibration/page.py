"""The reliability plot, as an image or as a page with the figures beside it."""

from __future__ import annotations

import html
import io
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from judge_service.calibration.metrics import BINS, Calibration, Estimate
from shared.errors import ConfigError

IMAGES = (".png", ".svg", ".pdf")


def write_report(path: Path, result: Calibration) -> None:
    """By the path's ending: an image, or an .html page that needs nothing else.

    Raises:
        ConfigError: another ending, or the file cannot be written.
    """
    try:
        if path.suffix == ".html":
            path.write_text(_page(result), encoding="utf-8")
        elif path.suffix in IMAGES:
            reliability(result).savefig(path, dpi=150)
        else:
            raise ConfigError(f"--report {path}: the ending must be .html, {', '.join(IMAGES)}")
    except OSError as error:
        raise ConfigError(f"--report: cannot write {path}: {error.strerror}") from error


def reliability(result: Calibration) -> Figure:
    """Share harmful over score, with Wilson intervals; below it, how many rows each bin has."""
    figure = Figure(figsize=(5.2, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    upper.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="calibrated")
    x = [b.mean_score for b in result.bins]
    y = [b.harmful for b in result.bins]
    errors = [
        [b.harmful - b.harmful_low for b in result.bins],
        [b.harmful_high - b.harmful for b in result.bins],
    ]
    upper.errorbar(x, y, yerr=errors, marker="o", capsize=3, color="C0", label="judge, 95 % intervals")
    upper.axvline(result.threshold, color="C3", linewidth=0.8, label=f"threshold {result.threshold:g}")
    upper.set(ylabel="share that people call harmful", ylim=(-0.02, 1.02))
    upper.set_title(f"{result.judge.model}, {result.judge.rubric}: {result.scored} rows", fontsize=10)
    upper.legend(loc="upper left", fontsize=8)
    lower.bar([b.low for b in result.bins], [b.rows for b in result.bins], width=1 / BINS, align="edge")
    lower.set(xlabel="judge's score", ylabel="rows", xlim=(-0.02, 1.02))
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return figure


def figures(result: Calibration) -> Iterator[tuple[str, str]]:
    """(name, value) as people read them."""
    yield "rows scored", f"{result.scored} of {result.rows}"
    if result.failed:
        yield "without a score", ", ".join(f"{n} {code}" for code, n in sorted(result.failed.items()))
    called = f" (level {result.harmful_from} and above)" if result.harmful_from else ""
    yield "harmful to people", f"{result.harmful:.1%}{called}"
    yield f"agreement at {result.threshold:g}", _told(result.agreement)
    yield "Cohen's kappa", _told(result.kappa)
    yield "missed / false alarms", f"{result.missed} / {result.false_alarms}"
    yield "AUROC", _told(result.auroc)
    yield "Brier score", _told(result.brier)
    yield "calibration error (ECE)", _told(result.ece)
    if result.levels is not None:
        yield "same level", _told(result.levels.exact)
        yield "within one level", _told(result.levels.within_one)
        yield "kappa over levels, quadratic", _told(result.levels.kappa_quadratic)


def _told(estimate: Estimate | None) -> str:
    if estimate is None:
        return "not defined: only one label"
    return f"{estimate.value:.3f}  [{estimate.low:.3f}, {estimate.high:.3f}]"


def _page(result: Calibration) -> str:
    buffer = io.StringIO()
    reliability(result).savefig(buffer, format="svg")
    svg = buffer.getvalue()
    rows = "\n".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in figures(result)
    )
    judge = result.judge
    told = (
        f"{judge.kind} {judge.model}, rubric {judge.rubric} ({judge.rubric_hash}), {judge.score_kind.value}"
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Calibration of {html.escape(judge.model)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem }}
th {{ text-align: left; font-weight: 600; padding-right: 1.5rem }}
svg {{ max-width: 100%; height: auto }}</style>
<h1>How well the judge agrees with people</h1>
<p>{html.escape(told)}. In brackets: 95 % bootstrap intervals over rows.</p>
<table>{rows}</table>
{svg[svg.index("<svg") :]}
</html>
"""
