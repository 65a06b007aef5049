from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from judge_service.backends.base import BackendInfo, Grade, GradeFailure, GradeRequest
from judge_service.backends.faulty import Faults, FaultyBackend, parse_faults, spoil
from shared.errors import ConfigError
from shared.rubrics.rubric import load_rubric
from shared.wire import FailureCode, ScoreKind

RUBRIC = load_rubric("demo-v1")


class Harmful:
    """Says that everything is harmful."""

    info = BackendInfo("harmful", "none", ScoreKind.LABEL_PROBABILITY, 1)

    async def judge(self, batch: Sequence[GradeRequest]) -> list[Grade | GradeFailure]:
        return [Grade(0.9, 5, (0.0, 0.0, 0.1, 0.2, 0.7), 1.0) for _ in batch]

    async def close(self) -> None:
        return None


REQUESTS = [GradeRequest(RUBRIC, f"request {n}", "reply") for n in range(2000)]


def judged(faults: Faults, requests: list[GradeRequest] = REQUESTS) -> list[Grade | GradeFailure]:
    return asyncio.run(FaultyBackend(Harmful(), faults).judge(requests))


def share(answers: list[Grade | GradeFailure], code: FailureCode) -> float:
    return sum(isinstance(a, GradeFailure) and a.code is code for a in answers) / len(answers)


def test_no_faults_change_nothing() -> None:
    assert judged(Faults()) == asyncio.run(Harmful().judge(REQUESTS))


def test_shares_are_as_asked() -> None:
    answers = judged(Faults(fail=0.2, garbage=0.1, miss=0.5, seed=3))
    assert share(answers, FailureCode.SERVER_ERROR) == pytest.approx(0.2, abs=0.03)
    assert share(answers, FailureCode.PARSE_ERROR) == pytest.approx(0.1, abs=0.03)
    grades = [answer for answer in answers if isinstance(answer, Grade)]
    missed = [grade for grade in grades if grade.score == 0.0]
    assert len(missed) / len(grades) == pytest.approx(0.5, abs=0.05)
    assert all(grade.level == 1 and grade.probabilities == (1.0, 0, 0, 0, 0) for grade in missed)


def test_false_alarms_befall_the_harmless_alone() -> None:
    blind = [answer for answer in judged(Faults(miss=1.0)) if isinstance(answer, Grade)]
    assert {answer.score for answer in blind} == {0.0}
    faults = Faults(alarm=0.3, seed=4)
    raised = [spoil(faults, request, answer) for request, answer in zip(REQUESTS, blind, strict=True)]
    alarms = [grade for grade in raised if isinstance(grade, Grade) and grade.score == 1.0]
    assert len(alarms) / len(raised) == pytest.approx(0.3, abs=0.05)
    assert all(grade.level == 5 and grade.probabilities == (0, 0, 0, 0, 1.0) for grade in alarms)
    assert judged(faults) == judged(Faults())


def test_a_fault_belongs_to_the_text_and_the_seed() -> None:
    faults = Faults(fail=0.3, miss=0.3, seed=1)
    whole = judged(faults)
    alone = [judged(faults, [one])[0] for one in REQUESTS[:50]]
    assert alone == whole[:50]
    assert judged(Faults(fail=0.3, miss=0.3, seed=2)) != whole


def test_a_delay_waits_without_keeping_anybody_busy() -> None:
    async def together() -> float:
        backend = FaultyBackend(Harmful(), Faults(delay_s=0.2))
        began = time.monotonic()
        await asyncio.gather(*(backend.judge(REQUESTS[:1]) for _ in range(10)))
        return time.monotonic() - began

    took = asyncio.run(together())
    assert 0.2 <= took < 1.0


def test_it_says_what_it_is() -> None:
    info = FaultyBackend(Harmful(), Faults(delay_s=1)).info
    assert info.kind == "faulty(harmful)"
    assert info.concurrency > 1
    assert FaultyBackend(Harmful(), Faults(fail=1)).info.concurrency == 1


def test_a_spec_is_read() -> None:
    assert parse_faults("delay_s=0.5, fail=0.1,seed=4") == Faults(delay_s=0.5, fail=0.1, seed=4)
    assert parse_faults("") == Faults()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fail", "'fail' is not of the form name=value"),
        ("fail=2", "fail: Input should be less than or equal to 1"),
        ("delay=1", "delay: Extra inputs are not permitted; there are: delay_s"),
        ("fail=0.6,garbage=0.6", "more than all items together"),
        ("delay_s=nan", "delay_s: Input should be a finite number"),
    ],
)
def test_a_wrong_spec_is_named(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_faults(spec)
    assert message in str(caught.value)
