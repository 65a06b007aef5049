"""Fits a head for every layer and pooling, and chooses one by folds of the training rows alone.

Logistic regression with an L2 penalty on standardised features. For each head the strength of the penalty,
and then the head itself, is the one with the least log loss over rows that its folds' fits did not see.
The same prompt never stands on both sides of a fold. No test row is looked at anywhere here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from shared.errors import DataError
from trainer.probe.feature_file import FeatureFile
from trainer.probe.features import POOLINGS, Pooling
from trainer.probe.head import Doubles, Floats, Head, Ints, head_name
from trainer.probe.standard import Moments

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""scikit-learn's C, rising: the penalty's weight is 1 / C."""
MIN_EACH = 10
"""Fewest examples of either class that anything is fitted on."""
MAX_ITERATIONS = 400

Bools = NDArray[np.bool_]
Tell = Callable[[str], None]
"""Told the name of each head that is done."""


@dataclass(frozen=True)
class Fitted:
    """A head, and how its kind did on rows that were left out."""

    head: Head
    strength: float
    log_loss: float
    auroc: float
    held_out_logits_N: Doubles
    """Of each training row, from the fold's fit that did not see it."""


@dataclass(frozen=True)
class Selection:
    best: Fitted
    heads: tuple[Fitted, ...]
    """All of them, `best` included; their `held_out_logits_N` are dropped."""


def check_classes(harmful_N: Bools) -> None:
    """Raises DataError where there are too few examples of either class to fit and to hold some out."""
    yes, no = int(harmful_N.sum()), int((~harmful_N).sum())
    if not yes or not no:
        only = "harmful" if yes else "harmless"
        raise DataError(
            f"all {yes + no} examples are {only}: a probe is fitted on both kinds; add the other one"
        )
    if min(yes, no) < MIN_EACH:
        raise DataError(
            f"{yes} harmful and {no} harmless examples are too few to fit a probe and hold some out;"
            f" give at least {MIN_EACH} of each"
        )


def folds_of(harmful_N: Bools, keys_N: Ints, folds: int, seed: int) -> Ints:
    """[N]: the fold that each row is held out in; shares of both classes alike, equal keys together."""
    split = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    fold_N = np.zeros(len(harmful_N), dtype=np.int64)
    for fold, (_, held_out) in enumerate(split.split(harmful_N, harmful_N, groups=keys_N)):
        fold_N[held_out] = fold
        for side in (harmful_N[held_out], np.delete(harmful_N, held_out)):
            if side.all() or not side.any():
                raise DataError(
                    "the examples repeat so few prompts that a fold holds one class only; give more prompts"
                )
    return fold_N


def fit_all(
    features: FeatureFile,
    rows: Ints,
    harmful_N: Bools,
    keys_N: Ints,
    *,
    scratch: Path,
    folds: int = 5,
    seed: int = 0,
    poolings: Sequence[Pooling] = POOLINGS,
    tell: Tell = lambda name: None,
) -> Selection:
    """Every layer and all layers pooled, for each pooling; the same for the same rows and seed.

    Args:
        rows: of the file, that are fitted on. N of them.
        harmful_N, keys_N: of those rows, in their order.

    Raises:
        DataError: too few examples of either class.
    """
    check_classes(harmful_N)
    fold_N = folds_of(harmful_N, keys_N, folds, seed)
    moments = Moments(features, rows)
    heads: list[Fitted] = []
    best: Fitted | None = None
    for pooling in poolings:
        for layers in layer_sets(features.layers):
            found = fit_one(moments, pooling, layers, harmful_N, fold_N, scratch)
            if best is None or found.log_loss < best.log_loss:
                best = found
            heads.append(replace(found, held_out_logits_N=np.zeros(0)))
            tell(head_name(pooling, layers))
    assert best is not None
    return Selection(best, tuple(heads))


def layer_sets(layers: int) -> list[tuple[int, ...]]:
    """Each layer by itself, and all of them."""
    return [*((layer,) for layer in range(layers)), tuple(range(layers))]


def fit_one(
    moments: Moments,
    pooling: Pooling,
    layers: tuple[int, ...],
    harmful_N: Bools,
    fold_N: Ints,
    scratch: Path,
) -> Fitted:
    with moments.standardised(pooling, layers, scratch) as standard:
        held_out_SN = _held_out_logits(standard.matrix_NH, harmful_N, fold_N)
        losses = [_log_loss(harmful_N, logits_N) for logits_N in held_out_SN]
        at = int(np.argmin(losses))
        weight_H, bias = _fit(standard.matrix_NH, harmful_N, np.ones(len(harmful_N)), STRENGTHS[at])
        head = Head(pooling, layers, standard.mean_KH, standard.scale_KH, weight_H, bias)
    return Fitted(
        head,
        STRENGTHS[at],
        losses[at],
        float(roc_auc_score(harmful_N, held_out_SN[at])),
        held_out_SN[at],
    )


def _held_out_logits(matrix_NH: Floats, harmful_N: Bools, fold_N: Ints) -> Doubles:
    """[S, N], of each strength."""
    logits_SN = np.zeros((len(STRENGTHS), len(harmful_N)))
    for fold in range(int(fold_N.max()) + 1):
        inside_N = fold_N == fold
        for at, strength in enumerate(STRENGTHS):
            # Rows that are left out have no weight, so that none of the others need be copied.
            weight_H, bias = _fit(matrix_NH, harmful_N, (~inside_N).astype(np.float64), strength)
            logits_SN[at, inside_N] = (matrix_NH @ weight_H)[inside_N] + bias
    return logits_SN


def _fit(matrix_NH: Floats, harmful_N: Bools, counts_N: Doubles, strength: float) -> tuple[Floats, float]:
    model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        # Nearly there is there: what was not reached is the last digits of a loss, on held-out rows anyway.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(matrix_NH, harmful_N, sample_weight=counts_N)
    return model.coef_[0].astype(np.float32), float(model.intercept_[0])


def _log_loss(harmful_N: Bools, logits_N: Doubles) -> float:
    return float(log_loss(harmful_N, sigmoid(logits_N)))


def sigmoid(logits_N: Doubles) -> Doubles:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits_N)))
