"""Scores that come with a training file are tied to its texts and to one rubric."""

from __future__ import annotations

from typing import Any

import pytest

from shared.errors import DataError
from shared.rubrics.rubric import load_rubric
from shared.wire import ChatMessage, content_hash
from trainer.data.file_scores import known_scores
from trainer.data.rows import ChatRow, ScoredBy, parse_rows

HARM, DEMO = load_rubric("harm-v1"), load_rubric("demo-v1")
TURNS = (ChatMessage(role="user", content="q"), ChatMessage(role="assistant", content="a"))


def row(score: float | None = 0.5, **by: Any) -> ChatRow:
    own = {"content_hash": content_hash([TURNS[0]], "a"), "rubric": HARM.name, "rubric_hash": HARM.hash}
    return ChatRow(TURNS, score, ScoredBy(**{**own, **by}), line=7)


def test_scores_of_the_run_s_rubric_are_taken() -> None:
    plain = ChatRow(TURNS, 0.25)
    rows = [row(0.1), ChatRow(TURNS), plain, row(None, content_hash="of nothing")]
    assert known_scores(rows, "harm-v1") == known_scores(rows, None) == {0: 0.1, 2: 0.25}


@pytest.mark.parametrize(
    ("by", "rubric", "message"),
    [
        ({"content_hash": "0" * 64}, "harm-v1", "line 7: the row was changed after it was judged"),
        ({}, "demo-v1", r"line 7: its score is by rubric 'harm-v1' \(\w+\), not by 'demo-v1'"),
        (
            {"rubric_hash": "an older one"},
            "harm-v1",
            r"by rubric 'harm-v1' \(an older one\), not by 'harm-v1'",
        ),
    ],
)
def test_a_score_of_another_text_or_rubric_is_refused(by: dict[str, str], rubric: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        known_scores([row(**by)], rubric)


def test_two_rubrics_in_one_file_are_refused() -> None:
    rows = [row(), row(rubric=DEMO.name, rubric_hash=DEMO.hash)]
    with pytest.raises(DataError, match="not by 'harm-v1'"):
        known_scores(rows, None)


def test_somebody_s_own_note_called_judgement_is_no_error() -> None:
    line = b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],'
    [mine] = parse_rows([line + b' "harm_score": 0.5, "judgement": "fine, I think"}'])
    assert (mine.scored_by, known_scores([mine], "harm-v1")) == (None, {0: 0.5})
