"""Rows that a person has labelled and a judge has scored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import ValidationError

from judge_service.scoring.rows import Row
from judge_service.scoring.run import read_rows
from judge_service.scoring.store import verdict_of
from shared.errors import DataError
from shared.wire import FailedVerdict, JudgeInfo, ScoredVerdict

KEYS = ("level", "harmful")
"""Where a label stands when no key is named."""


class LabelKind(StrEnum):
    LEVELS = "levels"  # 1..5
    BINARY = "binary"  # harmful or not


@dataclass(frozen=True)
class Labelled:
    line: int
    label: int
    """1..5, or 0 and 1."""
    verdict: ScoredVerdict | FailedVerdict


@dataclass(frozen=True)
class LabelledSet:
    kind: LabelKind
    rows: list[Labelled]
    judge: JudgeInfo | None
    """None where no row has a score."""


def label_of(row: Row, key: str | None) -> bool | int:
    """Raises DataError naming the line."""
    found = [name for name in ((key,) if key else KEYS) if name in row.raw]
    if len(found) != 1:
        wanted = key or " or ".join(KEYS)
        raise DataError(
            f"{'two labels' if found else 'no label'}: one of {wanted} is due; name another key with --label",
            line=row.line,
        )
    value = row.raw[found[0]]
    if not isinstance(value, bool | int) or not 0 <= value <= 5:
        raise DataError(f"{found[0]} is {value!r:.40}; true, false or a level 1..5 is due", line=row.line)
    return value


def kind_of(labels: Iterable[tuple[int, bool | int]]) -> LabelKind:
    """(line, label) -> the one kind that all have. Raises DataError at the first that differs."""
    kinds = {LabelKind.LEVELS, LabelKind.BINARY}
    for line, label in labels:
        fits = {LabelKind.BINARY} if isinstance(label, bool) or label == 0 else {LabelKind.LEVELS}
        if label is not True and label == 1:
            fits = {LabelKind.LEVELS, LabelKind.BINARY}  # a level, or 0/1 for false/true
        if not kinds & fits:
            raise DataError(
                f"label {label!r} beside labels of the other kind: levels 1..5, or yes and no", line=line
            )
        kinds &= fits
    if len(kinds) == 2:
        raise DataError("every label is 1, which may be a level or a yes: write true and false, or levels")
    return kinds.pop()


def check_labels(source: Path, key: str | None, *, skip_broken: bool) -> bool:
    """Before anything is judged: whether all rows have a judgement already.

    Raises:
        DataError: a row without a label, or labels of two kinds; it names the line.
    """
    judged = True
    labels = []
    for row in _whole(source, skip_broken=skip_broken):
        labels.append((row.line, label_of(row, key)))
        judged = judged and "judgement" in row.raw
    kind_of(labels)
    return judged


def read_labelled(source: Path, key: str | None, *, skip_broken: bool) -> LabelledSet:
    """Raises DataError: no label, no judgement, one of another text, or scores of two judges."""
    labels, rows, judge = [], list[Labelled](), None
    for row in _whole(source, skip_broken=skip_broken):
        label = label_of(row, key)
        labels.append((row.line, label))
        try:
            content, verdict = verdict_of(row.raw["judgement"])
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            raise DataError(
                f"its judgement cannot be read ({type(error).__name__})", line=row.line
            ) from error
        if content != row.hash:
            raise DataError(
                "its judgement is of another text: it was changed since; score it again", line=row.line
            )
        if isinstance(verdict, ScoredVerdict):
            if judge is not None and verdict.judge != judge:
                raise DataError("its score is by another judge or rubric than those before", line=row.line)
            judge = verdict.judge
        rows.append(Labelled(row.line, int(label), verdict))
    return LabelledSet(kind_of(labels), rows, judge)


def _whole(source: Path, *, skip_broken: bool) -> Iterable[Row]:
    for row in read_rows(source):
        if isinstance(row, Row):
            yield row
        elif not skip_broken:
            raise row
