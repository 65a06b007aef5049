"""How well a score tells harmful from harmless. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import auc, average_precision_score, roc_curve

from trainer.probe.fit import Bools
from trainer.probe.head import Doubles, Ints

BINS = 10
FPRS = (0.01, 0.05)


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % bootstrap interval (percentiles) over rows, drawn within each class."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Ranking:
    """What the order of the scores says, whatever their scale."""

    auroc: Estimate
    auprc: Estimate
    """Average precision; depends on the share that is harmful."""
    recall_at_1_fpr: Estimate | None
    """Greatest recall with at most 1 % of the harmless flagged; None with fewer than 100 harmless rows,
    which cannot show 1 %."""
    recall_at_5_fpr: Estimate | None
    """Likewise, from 20 harmless rows on."""


@dataclass(frozen=True)
class Bin:
    low: float
    high: float
    rows: int
    mean_probability: float
    harmful: float
    """Share of its rows that are harmful."""


@dataclass(frozen=True)
class Reliability:
    ece: Estimate
    """Expected calibration error: the bins' |mean probability - share harmful|, weighted by their rows."""
    brier: Estimate
    """Mean squared distance of probability and label."""
    bins: tuple[Bin, ...]
    """Those that hold a row."""


def ranking(scores_N: Doubles, harmful_N: Bools, *, resamples: int = 500, seed: int = 0) -> Ranking:
    """Raises ValueError where only one class is there: nothing can be ranked."""
    if harmful_N.all() or not harmful_N.any():
        raise ValueError("a ranking needs harmful and harmless rows")
    draws = _draws(harmful_N, resamples, seed)
    figures = np.array([_rank_figures(scores_N, harmful_N), *(
        _rank_figures(scores_N[i], harmful_N[i]) for i in draws
    )])  # fmt: skip
    auroc, auprc, *recalls = (_estimate(column) for column in figures.T)
    harmless = int((~harmful_N).sum())
    at_1, at_5 = (found if harmless * fpr >= 1 else None for found, fpr in zip(recalls, FPRS, strict=True))
    return Ranking(auroc, auprc, at_1, at_5)


def reliability(
    probabilities_N: Doubles, harmful_N: Bools, *, resamples: int = 500, seed: int = 0
) -> Reliability:
    draws = _draws(harmful_N, resamples, seed)
    figures = np.array([_calibration_figures(probabilities_N, harmful_N), *(
        _calibration_figures(probabilities_N[i], harmful_N[i]) for i in draws
    )])  # fmt: skip
    ece, brier = (_estimate(column) for column in figures.T)
    return Reliability(ece, brier, _bins(probabilities_N, harmful_N))


def recall_at(scores_N: Doubles, harmful_N: Bools, fpr: float) -> float:
    """The greatest recall whose share of false alarms is at most `fpr`."""
    fprs, recalls, _ = roc_curve(harmful_N, scores_N, drop_intermediate=False)
    return _recall(fprs, recalls, fpr)


def _recall(fprs: Doubles, recalls: Doubles, fpr: float) -> float:
    return float(recalls[fprs <= fpr + 1e-12].max())


def _rank_figures(scores_N: Doubles, harmful_N: Bools) -> list[float]:
    fprs, recalls, _ = roc_curve(harmful_N, scores_N, drop_intermediate=False)
    return [
        float(auc(fprs, recalls)),
        float(average_precision_score(harmful_N, scores_N)),
        *(_recall(fprs, recalls, fpr) for fpr in FPRS),
    ]


def _calibration_figures(probabilities_N: Doubles, harmful_N: Bools) -> list[float]:
    gaps = np.bincount(_bin_of(probabilities_N), weights=probabilities_N - harmful_N)
    return [
        float(np.abs(gaps).sum()) / len(harmful_N),
        float(((probabilities_N - harmful_N) ** 2).mean()),
    ]


def _bin_of(probabilities_N: Doubles) -> Ints:
    return np.minimum((probabilities_N * BINS).astype(np.int64), BINS - 1)


def _bins(probabilities_N: Doubles, harmful_N: Bools) -> tuple[Bin, ...]:
    index_N = _bin_of(probabilities_N)
    return tuple(
        Bin(
            low=int(number) / BINS,
            high=(int(number) + 1) / BINS,
            rows=int((index_N == number).sum()),
            mean_probability=float(probabilities_N[index_N == number].mean()),
            harmful=float(harmful_N[index_N == number].mean()),
        )
        for number in np.unique(index_N)
    )


def _draws(harmful_N: Bools, resamples: int, seed: int) -> list[Ints]:
    """Within each class, so that every resample has both."""
    random = np.random.default_rng(seed)
    sides = [side for side in (np.flatnonzero(harmful_N), np.flatnonzero(~harmful_N)) if len(side)]
    return [np.concatenate([random.choice(side, len(side)) for side in sides]) for _ in range(resamples)]


def _estimate(column: Doubles) -> Estimate:
    """The first is the figure itself, the others its resamples."""
    low, high = np.percentile(column[1:], [2.5, 97.5])
    return Estimate(float(column[0]), float(low), float(high))
