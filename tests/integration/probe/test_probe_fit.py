"""Fitting on features made by hand: what is chosen, what is refused, what it costs in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import ConfigError, DataError
from trainer.probe.calibrate import Isotonic, calibrate, threshold_for, thresholds
from trainer.probe.fit import Selection, fit_all, folds_of
from trainer.probe.head import gather

Planted = Callable[..., Any]


def fitted(features: Any, harmful_N: Any, scratch: Path, **options: Any) -> Selection:
    rows = np.arange(features.rows)
    return fit_all(features, rows, harmful_N, rows, scratch=scratch, folds=3, **options)


@pytest.mark.parametrize(("pooling", "layer"), [("last", 1), ("mean", 2)])
def test_the_layer_that_knows_is_chosen(planted: Planted, tmp_path: Path, pooling: str, layer: int) -> None:
    features, harmful_N = planted(240, pooling=pooling, layer=layer)
    selection = fitted(features, harmful_N, tmp_path)
    assert selection.best.head.name == f"{pooling}/{layer}"
    assert selection.best.auroc > 0.9
    assert len(selection.heads) == 2 * (3 + 1)
    others = {f.head.name: f.auroc for f in selection.heads}
    assert abs(others["last/0"] - 0.5) < 0.15


def test_it_is_the_same_every_time(planted: Planted, tmp_path: Path) -> None:
    features, harmful_N = planted(120)
    one, other = (fitted(features, harmful_N, tmp_path) for _ in range(2))
    assert np.array_equal(one.best.head.weight_H, other.best.head.weight_H)
    assert np.array_equal(one.best.held_out_logits_N, other.best.held_out_logits_N)


def test_rows_outside_the_chosen_ones_do_not_matter(planted: Planted, tmp_path: Path) -> None:
    features, harmful_N = planted(200)
    chosen = np.arange(0, 200, 2)
    before = fit_all(features, chosen, harmful_N[chosen], chosen, scratch=tmp_path, folds=3)
    values = np.fromfile(features.path, dtype=np.float32).reshape(2, 3, 200, 6)
    values[:, :, 1::2] = 1e3
    values.tofile(features.path)
    after = fit_all(features, chosen, harmful_N[chosen], chosen, scratch=tmp_path, folds=3)
    assert np.array_equal(before.best.head.weight_H, after.best.head.weight_H)


def test_a_constant_feature_does_no_harm(planted: Planted, tmp_path: Path) -> None:
    features, harmful_N = planted(120)
    values = np.fromfile(features.path, dtype=np.float32).reshape(2, 3, 120, 6)
    values[..., 0] = 7.1
    values.tofile(features.path)
    head = fitted(features, harmful_N, tmp_path).best.head
    assert np.isfinite(head.logits(gather(features, head.pooling, head.layers, np.arange(120)))).all()


def test_the_same_prompt_is_in_one_fold() -> None:
    keys_N = np.repeat(np.arange(60), 3)
    fold_N = folds_of(keys_N % 2 == 0, keys_N, 4, seed=1)
    assert all(len(set(fold_N[keys_N == key])) == 1 for key in range(60))


@pytest.mark.parametrize(
    ("harmful", "harmless", "said"),
    [
        (50, 0, "all 50 examples are harmful: a probe is fitted on both kinds"),
        (0, 50, "all 50 examples are harmless"),
        (2, 1, "2 harmful and 1 harmless examples are too few .* give at least 10 of each"),
    ],
)
def test_too_little_to_fit_on(
    planted: Planted, tmp_path: Path, harmful: int, harmless: int, said: str
) -> None:
    features, _ = planted(harmful + harmless)
    with pytest.raises(DataError, match=said):
        fitted(features, np.array([True] * harmful + [False] * harmless), tmp_path)


def test_thresholds_keep_their_target(planted: Planted, tmp_path: Path) -> None:
    features, harmful_N = planted(600)
    logits_N = fitted(features, harmful_N, tmp_path).best.held_out_logits_N
    table = thresholds(logits_N, harmful_N)
    harmless = int((~harmful_N).sum())
    assert [t.target_fpr for t in table] == [0.005, 0.01, 0.02, 0.05, 0.1]  # 0.001 of ~360 is no row
    for t in table:
        flagged = logits_N > t.logit
        assert t.fpr == pytest.approx(flagged[~harmful_N].mean())
        assert t.target_fpr - 1 / harmless <= t.fpr <= t.target_fpr
        assert t.recall == pytest.approx(flagged[harmful_N].mean())
    with pytest.raises(
        ConfigError, match=r"no threshold for a false-positive rate of 0\.001; it has 0\.005,"
    ):
        threshold_for(table, 0.001)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_probabilities_are_shares(kind: Any) -> None:
    random = np.random.default_rng(0)
    truth = random.random(4000)
    harmful_N = random.random(4000) < truth
    logits_N = 3 * np.log(truth / (1 - truth)) + 1  # too sure, and off
    said_N = calibrate(kind, logits_N, harmful_N).probability(logits_N)
    assert np.abs(said_N - truth).mean() < 0.03


def test_classes_that_separate_wholly_are_not_certain() -> None:
    logits_N = np.concatenate([np.full(30, -4.0), np.full(30, 4.0)])
    said_N = calibrate("platt", logits_N, logits_N > 0).probability(logits_N)
    assert 0.02 < said_N.min() < 0.05
    assert 0.95 < said_N.max() < 0.98


def test_isotonic_survives_json() -> None:
    logits_N = np.linspace(-2, 2, 40)
    made = calibrate("isotonic", logits_N, logits_N > 0.3)
    again = Isotonic.model_validate_json(made.model_dump_json())
    assert np.array_equal(again.probability(logits_N), made.probability(logits_N))


def test_memory_does_not_grow_with_the_features(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond some tens of bytes an example (labels, logits), far less than its features."""
    # One chunk is always held: a small one, so that few examples show the growth.
    monkeypatch.setattr("trainer.probe.head.CHUNK", 128)
    monkeypatch.setattr("trainer.probe.fit.STRENGTHS", (1e-3,))
    layers, hidden = 4, 256

    def peak(rows: int) -> int:
        features, harmful_N = planted(rows, layers=layers, hidden=hidden, seed=rows)
        whole = np.arange(rows)
        tracemalloc.start()
        fit_all(features, whole, harmful_N, whole, scratch=tmp_path, folds=2, poolings=["last"])
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(300)  # what is imported on the way
    grown = (peak(1800) - peak(600)) / 1200
    features_bytes = layers * hidden * 4
    assert grown < features_bytes / 8, f"{grown:.0f} bytes an example, of {features_bytes} of features"
