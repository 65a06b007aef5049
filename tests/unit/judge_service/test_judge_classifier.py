"""The classifier backend, on a random model of the real classes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from judge_service.backends.base import Grade, GradeFailure, GradeRequest
from judge_service.backends.classifier import (
    ClassifierBackend,
    ClassifierOptions,
    harm_of_labels,
    read_logits,
)
from shared.errors import ConfigError
from shared.rubrics.encoding import CUT_MARK
from shared.rubrics.rubric import load_rubric
from shared.wire import ChatMessage, FailureCode, ScoreKind

RUBRIC = load_rubric("demo-v1")
LABELS = ["fine", "toxic", "insult"]


def open_classifier(folder: Path, **changes: Any) -> ClassifierBackend:
    options: dict[str, Any] = {"path": str(folder), "name": "tiny", "harm": {"toxic": 1.0}, "device": "cpu"}
    return ClassifierBackend(ClassifierOptions(**{**options, **changes}))


def judge(backend: ClassifierBackend, *requests: GradeRequest) -> list[Grade | GradeFailure]:
    return asyncio.run(backend.judge(requests))


def test_harm_is_the_model_s_own_probability(classifier_folder: Path) -> None:
    backend = open_classifier(classifier_folder)
    request = GradeRequest(RUBRIC, "why?", "because")
    [grade] = judge(backend, request)
    assert isinstance(grade, Grade)
    whole = backend._tokenizer("why?", "because", return_tensors="pt")
    with torch.inference_mode():
        expected = torch.softmax(backend._model(**whole).logits[0], -1)
    assert grade.score == pytest.approx(float(expected[1]), abs=1e-5)
    assert (grade.level, grade.probabilities, grade.categories) == (None, None, None)
    assert backend.info.score_kind is ScoreKind.CLASSIFIER


def test_company_in_the_batch_changes_no_score(classifier_folder: Path) -> None:
    backend = open_classifier(classifier_folder)
    requests = [GradeRequest(RUBRIC, "a", "word " * n) for n in (1, 40, 3, 12)]
    together = judge(backend, *requests)
    alone = [judge(backend, request)[0] for request in requests]
    for one, other in zip(together, alone, strict=True):
        assert isinstance(one, Grade)
        assert isinstance(other, Grade)
        assert one.score == pytest.approx(other.score, abs=1e-5)


@pytest.mark.parametrize("reads", ["exchange", "response"])
def test_texts_make_no_special_tokens_and_keep_head_and_tail(classifier_folder: Path, reads: str) -> None:
    backend = open_classifier(classifier_folder, reads=reads)
    tokenizer = backend._tokenizer
    short = backend.encode(GradeRequest(RUBRIC, "x", "y"))
    assert not short.truncated
    plain = short.ids
    turns = [ChatMessage(role="user", content="a"), ChatMessage(role="assistant", content="b")]
    long = "HEAD [SEP] [CLS] " + "z " * 4000 + " TAIL"
    row = backend.encode(GradeRequest(RUBRIC, turns, long))
    assert row.truncated
    ids, segments = row.ids, row.segments
    assert len(ids) == len(segments) == 64
    for special in ("[CLS]", "[SEP]"):
        token = tokenizer.convert_tokens_to_ids(special)
        assert ids.count(token) == plain.count(token)
    text = tokenizer.decode(ids).replace(" ", "")
    assert "HEAD" in text
    assert "TAIL" in text
    assert CUT_MARK.strip().replace(" ", "") in text
    assert (":a" in text) is (reads == "exchange")
    assert (1 in segments) is (reads == "exchange")


def test_exclusive_labels_add_up_and_independent_ones_do_not() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0])
    shares = torch.softmax(logits, -1).tolist()
    exclusive = read_logits(logits, LABELS, [0.0, 1.0, 0.5], independent=False, truncated=False)
    assert isinstance(exclusive, Grade)
    assert exclusive.score == pytest.approx(shares[1] + 0.5 * shares[2])
    assert exclusive.categories == pytest.approx({"toxic": shares[1], "insult": shares[2]})
    independent = read_logits(logits, LABELS, [0.0, 1.0, 0.5], independent=True, truncated=True)
    assert isinstance(independent, Grade)
    assert independent.score == pytest.approx(float(torch.sigmoid(torch.tensor(2.0))))


def test_what_is_no_number_is_no_score() -> None:
    failed = read_logits(
        torch.tensor([0.0, float("nan")]), ["a", "b"], [0.0, 1.0], independent=False, truncated=False
    )
    assert isinstance(failed, GradeFailure)
    assert failed.code is FailureCode.PARSE_ERROR


def test_labels_are_named_or_numbered() -> None:
    assert harm_of_labels(LABELS, {"2": 0.5, "toxic": 1.0}, "m") == [0.0, 1.0, 0.5]
    with pytest.raises(ConfigError, match="has no label 'rude'; it has: fine, toxic, insult"):
        harm_of_labels(LABELS, {"rude": 1.0}, "m")
    with pytest.raises(ConfigError, match="say which labels of classifier m are harmful"):
        harm_of_labels(LABELS, {"fine": 0.0}, "m")


def test_a_folder_that_is_not_there_is_said_so() -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        open_classifier(Path("/nowhere/at/all"))
