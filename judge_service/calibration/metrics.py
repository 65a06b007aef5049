"""How well a judge's scores agree with people's labels. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score, confusion_matrix, roc_auc_score

from judge_service.calibration.labels import LabelKind, LabelledSet
from shared.wire import FailedVerdict, JudgeInfo

BINS = 10

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % bootstrap interval over rows (percentiles)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bin:
    """Rows whose score lies in [low, high), the last one's end included."""

    low: float
    high: float
    rows: int
    mean_score: float
    harmful: float
    """Share of them that people call harmful."""
    harmful_low: float
    harmful_high: float
    """Its 95 % Wilson interval."""


@dataclass(frozen=True)
class LevelAgreement:
    exact: Estimate
    within_one: Estimate
    kappa_quadratic: Estimate | None
    """Cohen's, with quadratic weights. None where it is not defined: people or judge know one level only."""
    confusion: list[list[int]]
    """[people's level - 1][judge's level - 1]."""


@dataclass(frozen=True)
class Calibration:
    judge: JudgeInfo
    labels: LabelKind
    rows: int
    scored: int
    failed: dict[str, int]
    """By code. They are no number and in none of the figures."""
    harmful_from: int | None
    """The least level that counts as harmful; None where the labels are yes and no."""
    threshold: float
    """The least score that counts as the judge's yes."""
    harmful: float
    """Share of the scored rows that people call harmful."""
    agreement: Estimate
    kappa: Estimate | None
    """Cohen's, on yes and no. None where it is not defined."""
    missed: int
    """Harmful to people, below the threshold."""
    false_alarms: int
    auroc: Estimate | None
    """None where people know only one of yes and no."""
    brier: Estimate
    """Mean squared distance of score and label; the score is read as the chance of a yes."""
    ece: Estimate
    """Expected calibration error: the bins' |mean score - share harmful|, weighted by their rows."""
    bins: list[Bin]
    """Those that hold a row."""
    levels: LevelAgreement | None


def calibration(
    labelled: LabelledSet,
    *,
    harmful_from: int = 3,
    threshold: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Calibration:
    """All figures, the same for the same rows and seed.

    Args:
        harmful_from: least level that counts as harmful, where the labels are levels.
        threshold: None for 0.5, or with levels the middle between the last harmless and the first harmful.
        resamples: of the bootstrap.

    Raises:
        ValueError: no row has a score.
    """
    scored = [(row.label, row.verdict) for row in labelled.rows if not isinstance(row.verdict, FailedVerdict)]
    failed: dict[str, int] = {}
    for row in labelled.rows:
        if isinstance(row.verdict, FailedVerdict):
            failed[row.verdict.error.code.value] = failed.get(row.verdict.error.code.value, 0) + 1
    if not scored or labelled.judge is None:
        raise ValueError(f"none of {len(labelled.rows)} rows has a score: {failed}")
    people = np.array([label for label, _ in scored], dtype=np.int64)
    scores = np.array([verdict.score for _, verdict in scored], dtype=np.float64)
    of_levels = labelled.kind is LabelKind.LEVELS
    if threshold is None:
        threshold = (harmful_from - 1.5) / 4 if of_levels else 0.5
    yes = (people >= harmful_from).astype(np.int64) if of_levels else people
    said = (scores >= threshold).astype(np.int64)
    samples = np.random.default_rng(seed).integers(0, len(scored), size=(resamples, len(scored)))

    def over(figure: Callable[[Ints], float]) -> Estimate | None:
        return _estimate(figure, samples, len(scored))

    return Calibration(
        judge=labelled.judge,
        labels=labelled.kind,
        rows=len(labelled.rows),
        scored=len(scored),
        failed=failed,
        harmful_from=harmful_from if of_levels else None,
        threshold=threshold,
        harmful=float(yes.mean()),
        agreement=_sure(over(lambda i: float((said[i] == yes[i]).mean()))),
        kappa=over(lambda i: _kappa(yes[i], said[i])),
        missed=int(((yes == 1) & (said == 0)).sum()),
        false_alarms=int(((yes == 0) & (said == 1)).sum()),
        auroc=over(lambda i: _auroc(yes[i], scores[i])),
        brier=_sure(over(lambda i: float(((scores[i] - yes[i]) ** 2).mean()))),
        ece=_sure(over(lambda i: _ece(yes[i], scores[i]))),
        bins=_bins(yes, scores),
        levels=_levels(people, scores, [v.level for _, v in scored], over) if of_levels else None,
    )


def _levels(
    people: Ints,
    scores: Floats,
    levels: list[int | None],
    over: Callable[[Callable[[Ints], float]], Estimate | None],
) -> LevelAgreement:
    # A judge without levels has the one nearest to its score.
    nearest = np.clip(np.rint(1 + 4 * scores), 1, 5).astype(np.int64)
    judge = np.array([n if level is None else level for level, n in zip(levels, nearest, strict=True)])
    return LevelAgreement(
        exact=_sure(over(lambda i: float((people[i] == judge[i]).mean()))),
        within_one=_sure(over(lambda i: float((np.abs(people[i] - judge[i]) <= 1).mean()))),
        kappa_quadratic=over(lambda i: _kappa(people[i], judge[i], weights="quadratic")),
        confusion=confusion_matrix(people, judge, labels=[1, 2, 3, 4, 5]).tolist(),
    )


def _kappa(one: Ints, other: Ints, *, weights: str | None = None) -> float:
    """NaN where chance alone would agree in everything."""
    if len(np.union1d(one, other)) < 2:
        return float("nan")
    return float(cohen_kappa_score(one, other, weights=weights))


def _auroc(yes: Ints, scores: Floats) -> float:
    """NaN where there is only one of yes and no."""
    return float(roc_auc_score(yes, scores)) if 0 < yes.sum() < len(yes) else float("nan")


def _ece(yes: Ints, scores: Floats) -> float:
    return float(np.abs(np.bincount(_bin_of(scores), weights=scores - yes)).sum()) / len(yes)


def _bin_of(scores: Floats) -> Ints:
    return np.minimum((scores * BINS).astype(np.int64), BINS - 1)


def _bins(yes: Ints, scores: Floats) -> list[Bin]:
    index = _bin_of(scores)
    found = []
    for number in np.unique(index):
        inside = index == number
        rows, hits = int(inside.sum()), int(yes[inside].sum())
        low, high = _wilson(hits, rows)
        found.append(
            Bin(
                low=int(number) / BINS,
                high=(int(number) + 1) / BINS,
                rows=rows,
                mean_score=float(scores[inside].mean()),
                harmful=hits / rows,
                harmful_low=low,
                harmful_high=high,
            )
        )
    return found


def _wilson(hits: int, rows: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson (1927); keeps within [0,1] for few rows."""
    p, spread = hits / rows, z * z / rows
    middle = (p + spread / 2) / (1 + spread)
    half = z / (1 + spread) * float(np.sqrt(p * (1 - p) / rows + spread / (4 * rows)))
    return max(0.0, middle - half), min(1.0, middle + half)


def _estimate(figure: Callable[[Ints], float], samples: Ints, rows: int) -> Estimate | None:
    """`samples`: [resamples, rows]. None where it is not defined on the rows as they are.

    Resamples on which it is not defined are left out of the interval.
    """
    value = figure(np.arange(rows))
    if np.isnan(value):
        return None
    drawn = np.array([figure(sample) for sample in samples])
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def _sure(estimate: Estimate | None) -> Estimate:
    assert estimate is not None, "defined on any rows"
    return estimate
