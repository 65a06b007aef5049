"""The label-probability backend on a random model."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from judge_service.backends.base import Grade, GradeFailure, GradeRequest
from judge_service.backends.reading import read_grade
from judge_service.backends.transformers import TransformersBackend, TransformersOptions, micro_batches
from shared.errors import ConfigError
from shared.rubrics.encoding import CUT_MARK, PromptIds, encode_text, label_ids
from shared.rubrics.rubric import Question, Rubric, load_rubric
from shared.wire import ChatMessage, FailureCode

CONTEXT = 256
"""Of the judge that conftest makes."""

RUBRIC = load_rubric("demo-v1")


def open_backend(folder: Path, **changes: object) -> TransformersBackend:
    options: dict[str, object] = {"rubrics": (RUBRIC,), "label_mass_floor": 0.0, "device": "cpu", **changes}
    return TransformersBackend(TransformersOptions(path=str(folder), name="random", **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def backend(judge_folder: Path) -> Iterator[TransformersBackend]:
    backend = open_backend(judge_folder)
    yield backend
    asyncio.run(backend.close())


def request(prompt: str | list[ChatMessage] = "how?", response: str = "thus") -> GradeRequest:
    return GradeRequest(RUBRIC, prompt, response)


def grades(backend: TransformersBackend, requests: list[GradeRequest]) -> list[Grade]:
    answers = asyncio.run(backend.judge(requests))
    assert all(isinstance(answer, Grade) for answer in answers), answers
    return answers  # type: ignore[return-value]


def encoded(backend: TransformersBackend, request: GradeRequest) -> PromptIds:
    prompt = backend.encode(request)
    assert isinstance(prompt, PromptIds)
    return prompt


def test_a_grade_is_the_models_own_label_probabilities(backend: TransformersBackend) -> None:
    ids = encoded(backend, request()).ids
    with torch.inference_mode():
        logits = backend._model(torch.tensor([ids])).logits[0, -1]
    labels = label_ids(backend._tokenizer, RUBRIC)
    chances = torch.softmax(logits, -1)[list(labels)]
    shares = (chances / chances.sum()).tolist()

    [grade] = grades(backend, [request()])

    assert grade.probabilities == pytest.approx(shares, abs=1e-5)
    assert grade.label_mass == pytest.approx(float(chances.sum()), abs=1e-5)
    assert grade.score == pytest.approx(sum(k * p for k, p in enumerate(shares)) / 4, abs=1e-5)


def test_company_in_the_batch_changes_no_score(backend: TransformersBackend) -> None:
    requests = [request(response="word " * n) for n in (1, 40, 3, 12, 25)]
    together = grades(backend, requests)
    alone = [grades(backend, [one])[0] for one in requests]
    assert [g.score for g in together] == pytest.approx([g.score for g in alone], abs=1e-4)
    assert len({round(g.score, 6) for g in alone}) > 1


def test_an_empty_batch_is_no_work(backend: TransformersBackend) -> None:
    assert asyncio.run(backend.judge([])) == []


@pytest.mark.parametrize("field", ["prompt", "response"])
def test_hostile_text_makes_no_special_tokens(
    backend: TransformersBackend, special_tokens: list[str], field: str
) -> None:
    clean = encoded(backend, request()).ids
    for special in special_tokens:
        hostile = encoded(backend, request(**{field: f"fine {special}5{special}"})).ids
        token = backend._tokenizer.convert_tokens_to_ids(special)
        assert token is not None
        assert hostile.count(token) == clean.count(token)
        # It is still there to be read, as ordinary text.
        assert f"fine {special}5{special}" in backend._tokenizer.decode(hostile)


def test_a_tokenizer_that_lets_text_write_the_fences_is_refused(
    tmp_path: Path, make_judge: Callable[..., Path]
) -> None:
    folder = make_judge(tmp_path, fences_special=False)
    with pytest.raises(ConfigError, match=r"relies on the token '<\|.*\|>', which graded text can write"):
        open_backend(folder)


@pytest.mark.parametrize(("bos", "count"), [(True, 1), (False, 0)])
def test_bos_comes_once_where_the_tokenizer_wants_it(
    tmp_path: Path, make_judge: Callable[..., Path], bos: bool, count: int
) -> None:
    backend = open_backend(make_judge(tmp_path, bos=bos))
    ids = encoded(backend, request()).ids
    token = backend._tokenizer.bos_token_id
    assert ids.count(token) == count
    assert (ids[0] == token) is bos
    asyncio.run(backend.close())


def test_a_long_text_loses_its_middle_and_says_so(backend: TransformersBackend) -> None:
    cut = encoded(backend, request(prompt="why?", response="HEAD " + "x" * 5000 + " TAIL"))
    assert cut.truncated
    assert not encoded(backend, request()).truncated
    ids = cut.ids
    assert CONTEXT - 2 <= len(ids) <= CONTEXT
    text = backend._tokenizer.decode(ids)
    assert "why?" in text
    assert "HEAD" in text
    assert "TAIL" in text
    assert CUT_MARK in text
    assert text.startswith(RUBRIC.prefix)
    assert text.endswith(RUBRIC.questions[0].suffix)
    long, short = grades(backend, [request(response="x" * 5000), request()])
    assert 0 <= long.score <= 1
    assert long.truncated
    assert not short.truncated


def test_a_conversation_is_graded_whole(backend: TransformersBackend) -> None:
    turns = [
        ChatMessage(role="user", content="first question"),
        ChatMessage(role="assistant", content="first answer"),
        ChatMessage(role="user", content="second question"),
    ]
    ids = encoded(backend, request(prompt=turns)).ids
    text = backend._tokenizer.decode(ids)
    assert all(turn.content in text for turn in turns)


@pytest.mark.parametrize(
    ("labels", "code"),
    [
        ([math.log(0.05)] * 5, FailureCode.PARSE_ERROR),
        ([math.nan] * 5, FailureCode.PARSE_ERROR),
        ([-math.inf] * 5, FailureCode.PARSE_ERROR),
    ],
)
def test_what_is_no_label_is_no_number(labels: list[float], code: FailureCode) -> None:
    answer = read_grade(RUBRIC, [labels], 0.5, truncated=False)
    assert isinstance(answer, GradeFailure)
    assert answer.code is code


def test_mass_above_the_floor_is_a_grade() -> None:
    assert isinstance(read_grade(RUBRIC, [[math.log(0.12)] * 5], 0.5, truncated=False), Grade)


def test_the_floor_is_applied_to_the_model(judge_folder: Path) -> None:
    strict = open_backend(judge_folder, label_mass_floor=0.999)
    [answer] = asyncio.run(strict.judge([request()]))
    assert isinstance(answer, GradeFailure)
    assert "below the floor 0.999" in answer.message
    asyncio.run(strict.close())


def test_labels_of_several_tokens_are_refused(judge_folder: Path) -> None:
    two_tokens = Rubric("two", "Grade.", ("", ""), ("", ""), (Question("", ""),))
    backend = open_backend(judge_folder)
    tokenizer = backend._tokenizer

    class SpellsNumbersOut:
        bos_token_id = None

        def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
            return tokenizer(text.replace("4", "four"), **options)

    with pytest.raises(ConfigError, match="label '4' is not one token"):
        label_ids(SpellsNumbersOut(), two_tokens)  # type: ignore[arg-type]
    asyncio.run(backend.close())


def test_labels_that_are_not_distinct_are_refused() -> None:
    class OneToken:
        bos_token_id = None

        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": [3] * len(text)}

    with pytest.raises(ConfigError, match="not distinct"):
        label_ids(OneToken(), Rubric("one", "Grade.", ("", ""), ("", ""), (Question("", ":"),)))  # type: ignore[arg-type]


def test_a_rubric_that_leaves_no_room_is_refused(judge_folder: Path) -> None:
    with pytest.raises(ConfigError, match="does not fit judge"):
        open_backend(judge_folder, max_tokens=40)


@pytest.mark.parametrize(
    ("path", "message"), [("/nowhere/at/all", "there is no folder"), ("", "cannot load the judge's model")]
)
def test_a_model_that_is_not_there_is_said_so(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_backend(Path(path) if path else tmp_path)


def test_untrusted_empty_text_has_no_tokens(backend: TransformersBackend) -> None:
    assert encode_text(backend._tokenizer, "", trusted=False) == []


def test_micro_batches_put_like_lengths_together() -> None:
    lengths = {0: 10, 1: 1000, 2: 12, 3: 11, 4: 9}
    groups = micro_batches(lengths, max_tokens=60)
    assert sorted(index for group in groups for index in group) == sorted(lengths)
    assert [1] in groups
    assert all(len(g) == 1 or len(g) * max(lengths[i] for i in g) <= 60 for g in groups)
    assert len(groups) == 2
