"""From the labels' log-probabilities to a grade: the same for every backend that has them."""

from __future__ import annotations

from collections.abc import Sequence

from judge_service.backends.base import Grade, GradeFailure
from shared.rubrics.rubric import Rubric, read_labels, read_rubric
from shared.wire import FailureCode


def read_grade(
    rubric: Rubric, label_logprobs: Sequence[Sequence[float]], mass_floor: float, *, truncated: bool
) -> Grade | GradeFailure:
    """One row of label log-probabilities a question of the rubric -> a grade, or why it is none.

    `mass_floor`: less probability on a question's labels together is no answer. `truncated`: graded text
    was left out of any of the questions.
    """
    try:
        reading = read_rubric(rubric, [read_labels(row) for row in label_logprobs])
    except ValueError as error:
        return GradeFailure(FailureCode.PARSE_ERROR, str(error))
    if reading.label_mass < mass_floor:
        return GradeFailure(
            FailureCode.PARSE_ERROR,
            f"the labels have probability {reading.label_mass:.3g} together, below the floor {mass_floor:g}",
        )
    return Grade.from_reading(reading, truncated=truncated)
