"""The taught probe: what it learns from a judge that errs, and what it may never do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.safety.ledger import ItemKey, SourceName
from trainer.safety.probe.features import FeatureTable
from trainer.safety.probe.fit import FOLDS, Noise, enough, fit_linear
from trainer.safety.probe.lessons import Lessons, Taught
from trainer.safety.probe.teacher import NotEnough, Opinion, Teacher
from trainer.safety.probe.trust import reliability

ROWS = 400
WIDTH = 32


def world(share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features and harm: a direction, in noise that is as strong."""
    random = np.random.default_rng(seed)
    harmful_n = random.random(ROWS) < share
    features_nD = random.normal(size=(ROWS, WIDTH)).astype(np.float32)
    features_nD[harmful_n, :8] += 2.5
    return features_nD, harmful_n


def taught(row: int, score: float | None, made_at: int = 0, source: SourceName = SourceName.TARGET) -> Taught:
    return Taught(ItemKey(made_at, source, row), score)


def teacher(features_nD: np.ndarray, bound: int = 4096) -> Teacher:
    table = FeatureTable.in_memory(*features_nD.shape)
    table.put(range(len(features_nD)), features_nD)
    return Teacher(table, [row % FOLDS for row in range(len(features_nD))], bound)


def opinion(one: Teacher, rows: range | list[int] = range(ROWS)) -> Opinion:
    said = one.opinion(rows)
    assert isinstance(said, Opinion)
    return said


def verdicts(harmful_n: np.ndarray, blind: float, alarms: float = 0.0, seed: int = 5) -> np.ndarray:
    draw_n = np.random.default_rng(seed).random(len(harmful_n))
    return np.where(harmful_n, draw_n >= blind, draw_n < alarms).astype(float)


@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("blind", [0.0, 0.5, 0.8])
def test_rows_that_the_judge_missed_are_found(share: float, blind: float) -> None:
    features_nD, harmful_n = world(share)
    verdict_n = verdicts(harmful_n, blind)
    one = teacher(features_nD)
    one.learn(taught(row, float(verdict)) for row, verdict in enumerate(verdict_n))
    said = opinion(one)
    score_n = np.array(said.scores)
    missed_n = harmful_n & (verdict_n == 0)
    assert said.trust > 0.9
    assert np.mean(score_n[~harmful_n]) < 0.1
    if missed_n.any():
        assert np.median(score_n[missed_n]) > 0.9


def test_false_alarms_do_not_raise_everything() -> None:
    features_nD, harmful_n = world(0.3)
    verdict_n = verdicts(harmful_n, 0.3, alarms=0.1)
    one = teacher(features_nD)
    one.learn(taught(row, float(verdict)) for row, verdict in enumerate(verdict_n))
    score_n = np.array(opinion(one).scores)
    assert np.median(score_n[~harmful_n]) < 0.2
    assert np.median(score_n[harmful_n]) > 0.9


def test_verdicts_that_follow_nothing_earn_no_trust() -> None:
    features_nD, _ = world(0.3)
    one = teacher(features_nD)
    draw = np.random.default_rng(9)
    one.learn(taught(row, float(draw.random() < 0.3)) for row in range(ROWS))
    assert opinion(one).trust < 0.2


@pytest.mark.parametrize("harmful", [0, 3, ROWS - 3, ROWS])
def test_too_few_of_one_class_is_a_state_and_no_score(harmful: int) -> None:
    features_nD, _ = world(0.3)
    one = teacher(features_nD)
    one.learn(taught(row, float(row < harmful)) for row in range(ROWS))
    assert one.opinion([0, 1]) == NotEnough(harmful, ROWS - harmful)


def test_three_examples_are_too_few() -> None:
    features_nD, _ = world(0.3)
    one = teacher(features_nD)
    one.learn([taught(0, 1.0), taught(1, 0.0), taught(2, 1.0)])
    assert one.opinion([0]) == NotEnough(2, 1)


def test_a_class_within_one_fold_is_too_few() -> None:
    harmful_n = np.array([True] * 6 + [False] * 6)
    assert not enough(harmful_n, [0] * 6 + [0, 1, 2, 3, 4, 0])
    assert enough(harmful_n, [0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0])


def test_a_row_that_was_not_read_teaches_nothing() -> None:
    features_nD, harmful_n = world(0.3)
    one = Teacher(FeatureTable.in_memory(ROWS, WIDTH), [row % FOLDS for row in range(ROWS)], 4096)
    one.learn(taught(row, float(harm)) for row, harm in enumerate(harmful_n))
    one.features.put([0], features_nD[:1])
    said = one.opinion([0])
    assert isinstance(said, NotEnough)
    assert said.harmful + said.harmless == 1
    with pytest.raises(KeyError, match="row 7"):
        one.features.of([0, 7])


def test_features_that_are_no_numbers_are_refused() -> None:
    features_nD, harmful_n = world(0.3)
    features_nD[3, 2] = np.nan
    one = teacher(features_nD)
    one.learn(taught(row, float(harm)) for row, harm in enumerate(harmful_n))
    with pytest.raises(ValueError, match="not finite"):
        one.opinion([0])


def test_one_class_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="one class"):
        fit_linear(np.ones((4, 2)), np.ones(4, dtype=bool))


@settings(max_examples=15, deadline=None)
@given(row=st.integers(0, ROWS - 1), blind=st.sampled_from([0.0, 0.5]))
def test_no_row_vouches_for_itself(row: int, blind: float) -> None:
    """Cross-fitted: what the judge says of a row moves neither its own probability nor that of its fold."""
    features_nD, harmful_n = world(0.3)
    verdict_n = verdicts(harmful_n, blind)
    turned_n = verdict_n.copy()
    turned_n[row] = 1 - turned_n[row]
    fold = [other for other in range(ROWS) if other % FOLDS == row % FOLDS]
    said = []
    for score_n in (verdict_n, turned_n):
        one = teacher(features_nD)
        one.learn(taught(other, float(score)) for other, score in enumerate(score_n))
        opinion(one)
        assert one.cross_fitted is not None
        said.append(one.cross_fitted.models[row % FOLDS].probability(features_nD[fold]))
    assert np.array_equal(*said)


def test_online_each_verdict_is_foretold_before_it_is_learned() -> None:
    """A judge that turns against its own past: what was learned foretells it wrongly, and trust goes."""
    features_nD, harmful_n = world(0.3)
    one = teacher(features_nD)
    one.learn(taught(row, float(harmful_n[row])) for row in range(100))
    before = opinion(one)
    one.learn(taught(row, float(not harmful_n[row])) for row in range(100, 124))
    after = opinion(one)
    assert before.reliability is not None
    assert after.reliability is not None
    assert before.trust == 1.0
    assert after.reliability.auroc < before.reliability.auroc - 0.1


def test_withdrawn_verdicts_leave_and_with_them_what_was_learned_of_them() -> None:
    features_nD, harmful_n = world(0.3)
    one, other = teacher(features_nD), teacher(features_nD)
    one.learn(taught(row, float(harmful_n[row])) for row in range(200))
    opinion(one)
    one.learn(taught(row, None) for row in range(100, 200))
    other.learn(taught(row, float(harmful_n[row])) for row in range(100))
    assert opinion(one).scores == opinion(other).scores
    one.learn(taught(row, None) for row in range(100))
    assert one.opinion([0]) == NotEnough(0, 0)


def test_a_row_teaches_the_greatest_of_its_verdicts() -> None:
    lessons = Lessons(10)
    lessons.teach(ItemKey(0, SourceName.TARGET, 1), 0.0)
    lessons.teach(ItemKey(3, SourceName.POLICY, 1), 0.9)
    assert lessons.harmful(1)
    assert lessons.withdraw(ItemKey(3, SourceName.POLICY, 1))
    assert not lessons.harmful(1)
    assert not lessons.withdraw(ItemKey(9, SourceName.POLICY, 1))


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=80), st.integers(4, 12))
def test_the_replay_is_bounded_and_keeps_the_rare_class(said: list[tuple[int, bool]], bound: int) -> None:
    lessons = Lessons(bound)
    ever: dict[int, bool] = {}
    for row, harmful in said:
        lessons.teach(ItemKey(0, SourceName.TARGET, row), float(harmful))
        ever[row] = harmful
        assert len(lessons) <= bound
    kept = [lessons.harmful(row) for row in lessons.rows()]
    harmful = sum(ever.values())
    if sum(kept) < min(harmful, bound // 2):
        # A row may have been forgotten as harmful and come again as harmless.
        assert len(said) > len(ever)


def test_a_replay_that_is_full_forgets_alike_after_a_resume() -> None:
    draw = np.random.default_rng(3)
    said = [(int(draw.integers(0, 40)), float(draw.random() < 0.3)) for _ in range(120)]
    one = Lessons(12)
    for at, (row, score) in enumerate(said[:60]):
        one.teach(ItemKey(at, SourceName.POLICY, row), score)
    other = Lessons.from_state(json.loads(json.dumps(one.to_state())), 12)
    for at, (row, score) in enumerate(said[60:]):
        for each in (one, other):
            each.teach(ItemKey(60 + at, SourceName.POLICY, row), score)
    assert len(one) == 12
    assert one.to_state() == other.to_state()


def test_resumed_from_its_state_it_goes_on_alike() -> None:
    features_nD, harmful_n = world(0.3)
    verdict_n = verdicts(harmful_n, 0.5)
    one = teacher(features_nD)
    one.learn(taught(row, float(verdict_n[row])) for row in range(150))
    opinion(one)
    one.learn(taught(row, float(verdict_n[row])) for row in range(150, 160))
    opinion(one)
    other = teacher(features_nD)
    other.restore(json.loads(json.dumps(one.to_state())))
    for until in range(170, ROWS, 30):
        for each in (one, other):
            each.learn(taught(row, float(verdict_n[row])) for row in range(until - 30, until))
        assert opinion(one) == opinion(other)
    assert one.to_state() == other.to_state()


def test_rows_read_after_the_checkpoint_are_read_again() -> None:
    features_nD, _ = world(0.3)
    one = teacher(features_nD)
    one.features.known_R[200:] = False
    state = json.loads(json.dumps(one.to_state()))
    one.features.put(range(200, 300), features_nD[200:300])
    one.restore(state)
    assert one.features.known_R.sum() == 200


def test_the_file_keeps_what_was_put(tmp_path: Path) -> None:
    features_nD, _ = world(0.3)
    path = tmp_path / "features.f32"
    table = FeatureTable.in_file(path, *features_nD.shape)
    table.put([5], features_nD[5:6])
    table.put([5], features_nD[6:7])
    again = FeatureTable.in_file(path, *features_nD.shape)
    assert not again.known_R.any()
    again.known_R[5] = True
    assert np.array_equal(again.of([5]), features_nD[5:6])


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=40))
def test_reliability_counts_pairs(said: list[tuple[float, bool]]) -> None:
    found = reliability([p for p, _ in said], [harmful for _, harmful in said])
    above = [p for p, harmful in said if harmful]
    below = [p for p, harmful in said if not harmful]
    if not above or not below:
        assert found is None
        return
    assert found is not None
    wins = sum((a > b) + 0.5 * (a == b) for a in above for b in below)
    assert found.auroc == pytest.approx(wins / (len(above) * len(below)))
    assert 0 <= found.trust <= 1


def test_few_verdicts_foretold_well_are_not_much() -> None:
    few = reliability([0.9, 0.1], [True, False])
    many = reliability([0.9, 0.1] * 50, [True, False] * 50)
    assert few is not None
    assert many is not None
    assert few.trust < 0.5 < many.trust == 1.0


@given(st.floats(0, 0.4), st.floats(0.41, 1), st.floats(0, 1))
def test_risk_runs_from_floor_to_ceiling(floor: float, ceiling: float, probability: float) -> None:
    risk = Noise(floor, ceiling).risk(np.array([floor, probability, ceiling]))
    assert risk[0] == 0
    assert risk[2] == 1
    assert 0 <= risk[1] <= 1
