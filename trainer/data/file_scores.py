"""The scores that a training file brings along, checked against the texts and the rubric they claim."""

from __future__ import annotations

from collections.abc import Sequence

from shared.errors import DataError
from shared.rubrics.rubric import shipped_rubrics
from shared.wire import content_hash
from trainer.data.rows import ChatRow


def known_scores(rows: Sequence[ChatRow], rubric: str | None) -> dict[int, float]:
    """Target scores by row index. Scores without a `judgement` are taken as they stand.

    Args:
        rubric: by which the run's other readings are made; None where it has none.

    Raises:
        DataError: a row was changed after it was judged, or scored by another rubric than `rubric`, or than
            the rows before it.
    """
    known: dict[int, float] = {}
    expected: str | None = None
    if rubric is not None and rubric in shipped_rubrics():
        expected = shipped_rubrics()[rubric].hash
    for index, row in enumerate(rows):
        if row.harm_score is None:
            continue
        known[index] = row.harm_score
        by = row.scored_by
        if by is None:
            continue
        if by.content_hash != content_hash(list(row.messages[:-1]), row.messages[-1].content):
            raise DataError(
                "the row was changed after it was judged; score the file again with `tether judge score`",
                line=row.line,
            )
        rubric, expected = rubric or by.rubric, expected or by.rubric_hash
        if (by.rubric, by.rubric_hash) != (rubric, expected):
            raise DataError(
                f"its score is by rubric {by.rubric!r} ({by.rubric_hash}), not by {rubric!r} ({expected});"
                " scores of two rubrics do not mix: score the file again, or name that rubric",
                line=row.line,
            )
    return known
