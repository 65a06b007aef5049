"""Control pairs: which there are, and what the answers to them mean."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from judge_service.backends.base import Grade, GradeFailure, GradeRequest
from judge_service.backends.rules import RulesBackend
from judge_service.worker.controls import (
    CONSTANT_AFTER,
    ConstantStream,
    Missed,
    Passed,
    Unanswered,
    check,
    load_controls,
    parse_controls,
)
from shared.errors import ConfigError
from shared.rubrics.rubric import load_rubric, shipped_rubrics
from shared.wire import FailureCode, ScoreKind

RUBRICS = sorted(shipped_rubrics())
NO_ANSWER = GradeFailure(FailureCode.PARSE_ERROR, "no label")


@pytest.mark.parametrize("rubric", [*RUBRICS, "one of the operator's own"])
@pytest.mark.parametrize("kind", [ScoreKind.LABEL_PROBABILITY, ScoreKind.CLASSIFIER])
def test_a_judge_that_says_the_same_to_everything_misses(rubric: str, kind: ScoreKind) -> None:
    pairs = load_controls(rubric, kind)
    for score in [n / 100 for n in range(101)]:
        assert isinstance(check(pairs, [Grade(score, None)] * len(pairs)), Missed), score


@pytest.mark.parametrize("rubric", RUBRICS)
def test_the_wiring_judge_passes(rubric: str) -> None:
    pairs = load_controls(rubric, ScoreKind.RULES)
    requests = [GradeRequest(load_rubric(rubric), pair.prompt, pair.response) for pair in pairs]
    assert check(pairs, asyncio.run(RulesBackend().judge(requests))) == Passed()


def test_classifiers_have_their_own_and_other_rubrics_the_default() -> None:
    default = load_controls("another", ScoreKind.LABEL_PROBABILITY)
    assert load_controls("harm-v1", ScoreKind.LABEL_PROBABILITY) == default
    assert load_controls("demo-v1", ScoreKind.LABEL_PROBABILITY) != default
    assert load_controls("demo-v1", ScoreKind.CLASSIFIER) == load_controls("another", ScoreKind.CLASSIFIER)


OWN = """
[[pair]]
name = "bad"
prompt = "p"
response = "r"
at_least = 0.7
[[pair]]
name = "good"
prompt = "p"
response = "s"
at_most = 0.2
"""


def test_an_operators_own_come_first(tmp_path: Path) -> None:
    (tmp_path / "demo-v1.toml").write_text(OWN)
    for kind in ScoreKind:
        assert [pair.name for pair in load_controls("demo-v1", kind, tmp_path)] == ["bad", "good"]
    assert load_controls("harm-v1", ScoreKind.SAMPLED, tmp_path) == load_controls(
        "harm-v1", ScoreKind.SAMPLED
    )
    with pytest.raises(ConfigError, match="there is no folder"):
        load_controls("demo-v1", ScoreKind.RULES, tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[pair", "own.toml"),
        (OWN.replace("at_most", "at_mots"), "pair.1.at_mots"),
        (OWN.replace("0.7", "1.5"), "pair.0.at_least"),
        (OWN.replace("0.7", "0.2"), "a judge that gives 0.2 to everything would pass"),
        ("pair = []", "a judge that gives 0 to everything would pass"),
    ],
)
def test_a_wrong_file_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_controls(text, "own.toml")


def test_misses_are_named_with_their_scores() -> None:
    pairs = parse_controls(OWN, "own.toml")
    assert check(pairs, [Grade(0.9, 5), Grade(0.1, 1)]) == Passed()
    assert check(pairs, [Grade(0.1, 1), Grade(0.1, 1)]) == Missed(
        "missed 1 of 2 control pairs: bad (0.1, not in 0.7..1)"
    )


def test_a_judge_may_fail_on_some_pairs_and_not_on_most() -> None:
    pairs = load_controls("harm-v1", ScoreKind.LABEL_PROBABILITY)
    answers = [Grade(1.0 if pair.at_least > 0 else 0.0, None) for pair in pairs]
    assert check(pairs, [NO_ANSWER, *answers[1:]]) == Passed()
    outcome = check(pairs, [NO_ANSWER, NO_ANSWER, *answers[2:]])
    assert outcome == Unanswered("2 of 3 harmful control pairs were not answered: no label")
    # A wrong answer weighs more than those that are missing.
    assert isinstance(check(pairs, [NO_ANSWER, NO_ANSWER, Grade(0.0, 1), *answers[3:]]), Missed)


UNSURE = Grade(0.25, 1, (0.6, 0.1, 0.1, 0.1, 0.1))


def test_equal_probabilities_for_many_texts_are_no_judgements() -> None:
    stream = ConstantStream()
    for n in range(CONSTANT_AFTER - 1):
        stream.note(f"text {n}", UNSURE)
    assert stream.trouble() is None
    stream.note("text 0", UNSURE)
    assert stream.trouble() is None, "a text that was there before says nothing new"
    stream.note("another", UNSURE)
    assert f"to {CONSTANT_AFTER} different texts in a row" in (stream.trouble() or "")


@pytest.mark.parametrize(
    "answer",
    [
        Grade(0.0, 1, (1.0, 0.0, 0.0, 0.0, 0.0)),  # sure, which may be right
        Grade(0.0, 1),  # few scores by nature
        Grade(0.0, None, (0.6, 0.1, 0.1, 0.1, 0.1), empty=True),  # nobody judged it
        NO_ANSWER,
    ],
)
def test_what_may_well_be_equal_is_no_trouble(answer: Grade | GradeFailure) -> None:
    stream = ConstantStream()
    for n in range(1000):
        stream.note(f"text {n}", answer)
    assert stream.trouble() is None


def test_another_answer_between_begins_anew() -> None:
    stream = ConstantStream()
    other = Grade(0.26, 1, (0.6, 0.1, 0.1, 0.1 - 1e-15, 0.1))
    for n in range(10 * CONSTANT_AFTER):
        stream.note(f"text {n}", other if n % (CONSTANT_AFTER - 1) == 0 else UNSURE)
    assert stream.trouble() is None
