"""A probe tried on rows that it did not learn from, beside controls that read the words alone.

For every split the whole fit is done again on its learning side: penalty, layer and pooling are chosen
there, by folds. The test side decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from trainer.probe import controls
from trainer.probe.calibrate import CalibrationKind, calibrate
from trainer.probe.feature_file import FeatureFile
from trainer.probe.features import Pooling
from trainer.probe.fit import Bools, Selection, fit_all
from trainer.probe.head import Doubles, Ints
from trainer.probe.metrics import Ranking, Reliability, ranking, reliability
from trainer.probe.splits import Skipped, Split
from trainer.probe.store import Probe

PROBE, NAIVE_BAYES, TFIDF = "probe", "n-gram naive Bayes", "TF-IDF regression"
NAMES = (PROBE, NAIVE_BAYES, TFIDF)


@dataclass(frozen=True)
class LayerScore:
    """AUROC of one head on the test rows. Shown, never chosen by."""

    name: str
    pooling: Pooling
    layer: int | None
    """None: all layers pooled."""
    auroc: float


@dataclass(frozen=True)
class Outcome:
    """One split, or one test file."""

    name: str
    trained: int
    """Rows that were learned from."""
    tested: int
    harmful: int
    """Of those tested."""
    head: str
    """That the learning side chose."""
    rankings: dict[str, Ranking]
    """By NAMES; a test file tried without training rows has the probe alone."""
    reliability: Reliability
    """Of the probe's calibrated probabilities."""
    layers: tuple[LayerScore, ...]


@dataclass(frozen=True)
class Corpus:
    """Rows in memory without their features: labels, keys, and the words for the controls."""

    harmful_N: Bools
    keys_N: Ints
    texts: Sequence[str]


def evaluate_split(
    split: Split,
    features: FeatureFile,
    corpus: Corpus,
    *,
    scratch: Path,
    folds: int,
    seed: int,
    resamples: int,
    calibration: CalibrationKind = "platt",
    tell: Callable[[str], None] = lambda name: None,
) -> Outcome:
    train, test = split.train, split.test
    learned = Corpus(corpus.harmful_N[train], corpus.keys_N[train], [corpus.texts[int(row)] for row in train])
    selection = fit_all(
        features,
        train,
        learned.harmful_N,
        learned.keys_N,
        scratch=scratch,
        folds=folds,
        seed=seed,
        tell=tell,
    )
    best = selection.best
    risk = calibrate(calibration, best.held_out_logits_N, learned.harmful_N)
    logits_N = best.head.logits_of(features, test)
    texts = [corpus.texts[int(row)] for row in test]
    words = fit_controls(learned, folds=folds, seed=seed)
    scores = {PROBE: logits_N, **{which: score(texts) for which, score in words.items()}}
    harmful_N = corpus.harmful_N[test]
    return Outcome(
        name=split.name,
        trained=len(train),
        tested=len(test),
        harmful=int(harmful_N.sum()),
        head=best.head.name,
        rankings={
            name: ranking(found, harmful_N, resamples=resamples, seed=seed) for name, found in scores.items()
        },
        reliability=reliability(risk.probability(logits_N), harmful_N, resamples=resamples, seed=seed),
        layers=layer_scores(selection, features, test, harmful_N),
    )


def evaluate_file(
    name: str,
    probe: Probe,
    features: FeatureFile,
    corpus: Corpus,
    words: Mapping[str, controls.Scorer],
    *,
    seed: int,
    resamples: int,
) -> Outcome | Skipped:
    """The probe as it is stored, on rows of another file; prompts that it was fitted on are left out.

    Args:
        words: controls that were fitted on the probe's own rows; empty where those are not at hand.
    """
    rows = np.flatnonzero(~np.isin(corpus.keys_N, probe.trained_on))
    harmful_N = corpus.harmful_N[rows]
    if harmful_N.all() or not harmful_N.any():
        dropped = len(corpus.harmful_N) - len(rows)
        return Skipped(
            name,
            f"{int(harmful_N.sum())} harmful and {int((~harmful_N).sum())} harmless rows that the probe was"
            f" not fitted on ({dropped} were): one class alone cannot be ranked",
        )
    logits_N = probe.head.logits_of(features, rows)
    texts = [corpus.texts[int(row)] for row in rows]
    scores = {PROBE: logits_N, **{which: score(texts) for which, score in words.items()}}
    return Outcome(
        name=name,
        trained=probe.card.examples,
        tested=len(rows),
        harmful=int(harmful_N.sum()),
        head=probe.card.head,
        rankings={
            which: ranking(found, harmful_N, resamples=resamples, seed=seed)
            for which, found in scores.items()
        },
        reliability=reliability(
            probe.calibration.probability(logits_N), harmful_N, resamples=resamples, seed=seed
        ),
        layers=tuple(
            _layer_score(head.name, head.pooling, head.layers, head.logits_of(features, rows), harmful_N)
            for head in probe.heads.values()
        ),
    )


def fit_controls(learned: Corpus, *, folds: int, seed: int) -> dict[str, controls.Scorer]:
    """By their names in NAMES."""
    return {
        NAIVE_BAYES: controls.naive_bayes(learned.texts, learned.harmful_N),
        TFIDF: controls.tfidf(learned.texts, learned.harmful_N, learned.keys_N, folds=folds, seed=seed),
    }


def layer_scores(
    selection: Selection, features: FeatureFile, test: Ints, harmful_N: Bools
) -> tuple[LayerScore, ...]:
    return tuple(
        _layer_score(
            fitted.head.name,
            fitted.head.pooling,
            fitted.head.layers,
            fitted.head.logits_of(features, test),
            harmful_N,
        )
        for fitted in selection.heads
    )


def _layer_score(
    name: str, pooling: Pooling, layers: tuple[int, ...], logits_N: Doubles, harmful_N: Bools
) -> LayerScore:
    layer = layers[0] if len(layers) == 1 else None
    return LayerScore(name, pooling, layer, float(roc_auc_score(harmful_N, logits_N)))
