"""Figures about a judge against cases where they are known."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from judge_service.calibration.labels import (
    LabelKind,
    Labelled,
    LabelledSet,
    check_labels,
    kind_of,
    read_labelled,
)
from judge_service.calibration.metrics import calibration
from judge_service.calibration.page import figures, write_report
from judge_service.scoring.rows import Row
from judge_service.scoring.run import scored_line
from shared.errors import ConfigError, DataError
from shared.wire import (
    FailedVerdict,
    FailureCode,
    JudgeInfo,
    ScoredVerdict,
    ScoreKind,
    Timings,
    VerdictError,
)

INFO = JudgeInfo(kind="k", model="m", rubric="r", rubric_hash="h", score_kind=ScoreKind.LABEL_PROBABILITY)
TIMINGS = Timings(queue_ms=0, judge_ms=0)


def verdict(score: float, level: int | None = None) -> ScoredVerdict:
    return ScoredVerdict(id="i", score=score, level=level, judge=INFO, timings=TIMINGS)


FAILED = FailedVerdict(id="i", error=VerdictError(code=FailureCode.TIMEOUT, message="m"), timings=TIMINGS)


def labelled(kind: LabelKind, *rows: tuple[int, ScoredVerdict | FailedVerdict]) -> LabelledSet:
    return LabelledSet(kind, [Labelled(n, label, v) for n, (label, v) in enumerate(rows, 1)], INFO)


def test_a_judge_that_agrees_in_everything() -> None:
    rows = [(level, verdict((level - 1) / 4, level)) for level in (1, 2, 3, 4, 5) * 6]
    result = calibration(labelled(LabelKind.LEVELS, *rows), resamples=50)
    assert result.threshold == 0.375
    assert result.levels is not None
    assert result.levels.kappa_quadratic is not None
    for figure in (result.agreement, result.kappa, result.auroc, result.levels.exact):
        assert figure is not None
        assert (figure.value, figure.low, figure.high) == (1, 1, 1)
    assert result.levels.kappa_quadratic.value == 1
    assert (result.missed, result.false_alarms) == (0, 0)
    assert result.levels.confusion == [[6 if i == k else 0 for k in range(5)] for i in range(5)]


def test_the_figures_of_a_small_case_by_hand() -> None:
    # (people, score): one miss, one false alarm
    rows = [(1, verdict(0.9)), (1, verdict(0.2)), (0, verdict(0.6)), (0, verdict(0.1)), (0, FAILED)]
    result = calibration(labelled(LabelKind.BINARY, *rows), resamples=200)
    assert (result.rows, result.scored, result.failed) == (5, 4, {"timeout": 1})
    assert result.agreement.value == 0.5
    assert result.kappa is not None
    assert result.kappa.value == 0
    assert (result.missed, result.false_alarms) == (1, 1)
    assert result.auroc is not None
    assert result.auroc.value == 0.75  # of 4 pairs, 0.2 < 0.6 is the wrong way round
    assert result.brier.value == pytest.approx((0.01 + 0.64 + 0.36 + 0.01) / 4)
    assert result.ece.value == pytest.approx((0.1 + 0.8 + 0.6 + 0.1) / 4)
    assert result.levels is None


def test_intervals_narrow_with_rows_and_hold_the_figure() -> None:
    rng = random.Random(3)

    def width(count: int) -> float:
        rows = []
        for _ in range(count):
            score = rng.random()
            rows.append((int(rng.random() < score), verdict(score)))
        result = calibration(labelled(LabelKind.BINARY, *rows), resamples=200)
        assert result.auroc is not None
        assert result.auroc.low < result.auroc.value < result.auroc.high
        # Drawn from its own scores: calibrated but for chance, and AUROC 5/6.
        assert result.auroc.low < 5 / 6 < result.auroc.high
        return result.auroc.high - result.auroc.low

    assert width(2000) < width(100) / 2


def test_what_is_not_defined_is_no_number() -> None:
    result = calibration(labelled(LabelKind.BINARY, *[(1, verdict(0.9))] * 10), resamples=50)
    assert (result.auroc, result.kappa) == (None, None)
    assert dict(figures(result))["AUROC"] == "not defined: only one label"
    with pytest.raises(ValueError, match=r"none of 2 rows has a score: \{'timeout': 2\}"):
        calibration(labelled(LabelKind.BINARY, (1, FAILED), (0, FAILED)))


@pytest.mark.parametrize(
    ("labels", "kind"),
    [([True, False], "binary"), ([0, 1], "binary"), ([1, 5], "levels"), ([1, True], "binary")],
)
def test_labels_are_of_one_kind(labels: list[int], kind: str) -> None:
    assert kind_of(enumerate(labels, 1)).value == kind


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 3, 0], "line 3: label 0 beside"),
        ([True, 4], "line 2: label 4 beside"),
        ([1, 1], "every label is 1"),
    ],
)
def test_labels_of_two_kinds_are_refused(labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        kind_of(enumerate(labels, 1))


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "line 1: no label: one of level or harmful is due"),
        ({"level": 3, "harmful": True}, "line 1: two labels"),
        ({"level": 7}, "line 1: level is 7; true, false or a level"),
        ({"harmful": "yes"}, "line 1: harmful is 'yes'"),
    ],
)
def test_a_row_without_a_usable_label_is_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    source = write(tmp_path / "in.jsonl", {"prompt": "p", "response": "r", **row})
    with pytest.raises(DataError, match=message):
        check_labels(source, None, skip_broken=False)


def test_judgements_are_read_back_and_tied_to_their_text(tmp_path: Path) -> None:
    raw = {"prompt": "p", "response": "r", "harmful": True}
    row = Row(1, "p", "r", raw)
    path = tmp_path / "in.jsonl"
    path.write_bytes(scored_line(row, verdict(0.8, 4), "r") + scored_line(Row(2, "p", "r", raw), FAILED, "r"))
    assert check_labels(path, None, skip_broken=False)
    found = read_labelled(path, None, skip_broken=False)
    assert found.judge == INFO
    assert [row.verdict.status for row in found.rows] == ["scored", "failed"]
    assert found.rows[0].verdict.score == 0.8
    path.write_text(path.read_text().replace('"response": "r"', '"response": "changed"'))
    with pytest.raises(DataError, match="line 1: its judgement is of another text"):
        read_labelled(path, None, skip_broken=False)


def test_reports_by_their_ending(tmp_path: Path) -> None:
    result = calibration(labelled(LabelKind.BINARY, (1, verdict(0.9)), (0, verdict(0.1))), resamples=50)
    for name, begins in (("r.png", b"\x89PNG"), ("r.svg", b"<?xml"), ("r.html", b"<!doctype html>")):
        write_report(tmp_path / name, result)
        assert (tmp_path / name).read_bytes().startswith(begins)
    page = (tmp_path / "r.html").read_text()
    assert "<svg" in page
    assert "Brier score" in page
    with pytest.raises(ConfigError, match=r"the ending must be \.html"):
        write_report(tmp_path / "r.txt", result)
