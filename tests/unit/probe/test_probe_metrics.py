"""Figures by hand."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.probe.metrics import ranking, recall_at, reliability


def test_a_perfect_order() -> None:
    harmful_N = np.arange(200) >= 100
    found = ranking(np.arange(200.0), harmful_N, resamples=50)
    assert (found.auroc.value, found.auprc.value) == (1.0, 1.0)
    assert found.recall_at_1_fpr is not None
    assert found.recall_at_1_fpr.value == 1.0


def test_recall_at_a_rate_of_false_alarms() -> None:
    harmless = np.arange(100.0)
    harmful = np.array([200.0, 98.5, 97.5, 50.5])
    scores = np.concatenate([harmless, harmful])
    labels = np.array([False] * 100 + [True] * 4)
    assert recall_at(scores, labels, 0.0) == 0.25
    assert recall_at(scores, labels, 0.01) == 0.5  # one false alarm: the 99
    assert recall_at(scores, labels, 0.02) == 0.75


def test_ties_are_not_ranked_by_luck() -> None:
    assert recall_at(np.zeros(40), np.arange(40) % 2 == 0, 0.05) == 0.0
    assert ranking(np.zeros(40), np.arange(40) % 2 == 0, resamples=20).auroc.value == 0.5


def test_a_rate_that_the_rows_cannot_show_is_not_given() -> None:
    harmful_N = np.arange(60) >= 40
    found = ranking(np.arange(60.0), harmful_N, resamples=20)
    assert found.recall_at_1_fpr is None
    assert found.recall_at_5_fpr is not None


def test_one_class_cannot_be_ranked() -> None:
    with pytest.raises(ValueError, match="harmful and harmless rows"):
        ranking(np.zeros(5), np.ones(5, dtype=np.bool_))


def test_the_interval_holds_the_truth() -> None:
    random = np.random.default_rng(0)
    harmful_N = random.random(400) < 0.5
    found = ranking(random.normal(size=400) + 1.0 * harmful_N, harmful_N, resamples=200)
    assert found.auroc.low < 0.76 < found.auroc.high  # Phi(1 / sqrt 2)
    assert found.auroc.low < found.auroc.value < found.auroc.high


def test_calibration_by_hand() -> None:
    said = np.array([0.05] * 10 + [0.95] * 10)
    harmful_N = np.array([False] * 10 + [True] * 5 + [False] * 5)
    found = reliability(said, harmful_N, resamples=20)
    assert found.ece.value == pytest.approx((0.05 + 0.45) / 2)
    assert [b.rows for b in found.bins] == [10, 10]
    assert found.bins[1].harmful == 0.5
    assert found.brier.value == pytest.approx((10 * 0.0025 + 5 * 0.0025 + 5 * 0.9025) / 20)
