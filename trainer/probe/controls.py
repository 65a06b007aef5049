"""What reads the words alone: a probe that is no better than these has shown nothing about the model.

(arXiv 2509.03888 found n-gram naive Bayes equal to probes.) They get the same rows as the probe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.naive_bayes import MultinomialNB

from trainer.probe.fit import Bools, folds_of
from trainer.probe.head import Doubles, Ints

NGRAMS = (1, 2)
STRENGTHS = (0.1, 1.0, 10.0, 100.0)
"""scikit-learn's C of the TF-IDF control, chosen by folds as the probe's is."""
WORDS = r"(?u)\b\w+\b"
"""scikit-learn's own, and words of one letter too."""

Scorer = Callable[[Sequence[str]], Doubles]
"""Texts -> a score each, higher for harmful."""


def naive_bayes(texts: Sequence[str], harmful_N: Bools) -> Scorer:
    """Multinomial, over words and pairs of words."""
    counts = CountVectorizer(ngram_range=NGRAMS, token_pattern=WORDS)
    model = MultinomialNB().fit(counts.fit_transform(texts), harmful_N)

    def score(others: Sequence[str]) -> Doubles:
        # The log-odds and not the probability, which rounds to 0 and 1 and would make ties.
        joint = model.predict_joint_log_proba(counts.transform(others))
        return np.asarray(joint[:, 1] - joint[:, 0])

    return score


def tfidf(texts: Sequence[str], harmful_N: Bools, keys_N: Ints, *, folds: int, seed: int) -> Scorer:
    """Logistic regression over TF-IDF of words and pairs of words."""
    fold_N = folds_of(harmful_N, keys_N, folds, seed)
    losses = np.zeros(len(STRENGTHS))
    for fold in range(folds):
        inside = np.flatnonzero(fold_N == fold)
        outside = np.flatnonzero(fold_N != fold)
        weights = _weights()
        seen = weights.fit_transform([texts[int(at)] for at in outside])
        held_out = weights.transform([texts[int(at)] for at in inside])
        for at, strength in enumerate(STRENGTHS):
            model = _regression(strength).fit(seen, harmful_N[outside])
            losses[at] += log_loss(harmful_N[inside], model.predict_proba(held_out)[:, 1]) * len(inside)
    weights = _weights()
    best = _regression(STRENGTHS[int(np.argmin(losses))]).fit(weights.fit_transform(texts), harmful_N)
    return lambda others: np.asarray(best.decision_function(weights.transform(others)))


def _weights() -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=NGRAMS, token_pattern=WORDS, sublinear_tf=True)


def _regression(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=1000)
