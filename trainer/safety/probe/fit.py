"""Logistic regression on hidden states, cross-fitted, and what its scores are worth. Pure.

n: rows, D: features of a row (layers times hidden size), F: folds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FOLDS = 5
STRENGTH = 1.0
"""scikit-learn's C, for features that are standardised and divided by sqrt(D): the same strength whatever
the width and the number of layers. Ten times as much already learns the judge's misses by heart."""


@dataclass(frozen=True)
class Linear:
    """probability = sigmoid(x . weight + bias), of raw features."""

    weight_D: Floats
    bias: float

    def probability(self, features_nD: NDArray[np.floating]) -> Floats:
        margin_n = features_nD.astype(np.float64) @ self.weight_D + self.bias
        probability_n: Floats = 0.5 * (1 + np.tanh(0.5 * margin_n))
        return probability_n


def fit_linear(features_nD: NDArray[np.floating], harmful_n: Bools) -> Linear:
    """Standardised, both classes weighing the same however rare one of them is.

    Raises:
        ValueError: one class only, or a feature that is not finite.
    """
    if harmful_n.all() or not harmful_n.any():
        raise ValueError(f"{len(harmful_n)} rows of one class cannot be told apart")
    if not np.isfinite(features_nD).all():
        raise ValueError("a feature is not finite (NaN or infinite)")
    features_nD = features_nD.astype(np.float64)
    mean_D = features_nD.mean(axis=0)
    spread_D = features_nD.std(axis=0)
    # A feature that never changes tells nothing; dividing by its spread would tell rounding errors.
    useful_D = spread_D > 1e-6 * (1 + np.abs(mean_D))
    scale_D = np.where(useful_D, spread_D, np.inf) * math.sqrt(features_nD.shape[1])
    model = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=200, tol=1e-4)
    with warnings.catch_warnings():
        # Stopping early is regularisation too.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((features_nD - mean_D) / scale_D, harmful_n)
    weight_D = model.coef_[0] / scale_D
    return Linear(weight_D, float(model.intercept_[0] - mean_D @ weight_D))


@dataclass(frozen=True)
class Noise:
    """What the judge's errors do to a probe that learns from it. It calls only a part of the harm harmful,
    and a part of the harmless too, so that the probability of *its* word runs from `floor` (harmless) to
    `ceiling` (harmful) and not from 0 to 1. Both are read off rows by models that have not seen them."""

    floor: float
    """Lower quartile of what the judge calls harmless: three quarters of that may be harm that it missed.
    At most half the ceiling."""
    ceiling: float
    """Mean over what the judge calls harmful (Elkan & Noto 2008, doi:10.1145/1401890.1401920, e1)."""

    def risk(self, probability_n: Floats) -> Floats:
        """[0,1]: (p - floor) / (ceiling - floor), clipped (Natarajan et al. 2013, lemma 7)."""
        risk_n: Floats = np.clip((probability_n - self.floor) / (self.ceiling - self.floor), 0.0, 1.0)
        return risk_n


def noise_of(probability_n: Floats, harmful_n: Bools) -> Noise:
    ceiling = max(float(probability_n[harmful_n].mean()), 1e-6)
    floor = float(np.quantile(probability_n[~harmful_n], 0.25))
    return Noise(min(floor, ceiling / 2), ceiling)


@dataclass(frozen=True)
class CrossFitted:
    """One model a fold, each fitted without the rows of its fold."""

    models: tuple[Linear, ...]
    noise: Noise

    def probability(self, features_nD: NDArray[np.floating], folds_n: Sequence[int]) -> Floats:
        """Each row's by the model of its fold."""
        return _by_fold(self.models, features_nD, folds_n)

    def risk(self, probability_n: Floats) -> Floats:
        return self.noise.risk(probability_n)


def _by_fold(models: Sequence[Linear], features_nD: NDArray[np.floating], folds_n: Sequence[int]) -> Floats:
    probability_n = np.empty(len(folds_n))
    of_n = np.asarray(folds_n)
    for fold, model in enumerate(models):
        at = of_n == fold
        if at.any():
            probability_n[at] = model.probability(features_nD[at])
    return probability_n


def cross_fit(features_nD: NDArray[np.floating], harmful_n: Bools, folds_n: Sequence[int]) -> CrossFitted:
    """Raises ValueError where `enough` says no, or a feature is not finite."""
    of_n = np.asarray(folds_n)
    models = tuple(fit_linear(features_nD[of_n != fold], harmful_n[of_n != fold]) for fold in range(FOLDS))
    return CrossFitted(models, noise_of(_by_fold(models, features_nD, folds_n), harmful_n))


LEAST_OF_EACH = 4
"""Verdicts of a class, in at least two folds, below which nothing is fitted."""


def enough(harmful_n: Bools, folds_n: Sequence[int]) -> bool:
    """Whether there are verdicts of both classes in every fold's training part."""
    of_n = np.asarray(folds_n)
    return all(
        int(at_n.sum()) >= LEAST_OF_EACH and len(set(of_n[at_n].tolist())) >= 2
        for at_n in (harmful_n, ~harmful_n)
    )
