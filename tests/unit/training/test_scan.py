"""The scan of the whole file before the first step: a window at a time, and given up together."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from shared.safety import Adaptive
from shared.wire import ChatMessage
from trainer.data.rows import ChatRow
from trainer.safety.judge_client import Answer
from trainer.safety.ledger import Arrival, Scored
from trainer.safety.question import Question
from trainer.training.distributed import Exchange, Signal
from trainer.training.guide import JudgedBeta
from trainer.training.order import DataOrder

ROWS, BATCH, DEADLINE_S = 4096, 16, 5.0


class Judge:
    """Answers at the next exchange, or never."""

    refusal = trouble = None
    state = ""

    def __init__(self, *, away: bool) -> None:
        self.away = away
        self.waiting: list[Answer] = []
        self.most = 0

    def submit(self, questions: Sequence[Question]) -> None:
        self.waiting += [Answer(Arrival(question.key, Scored(0.0)), 0.0, 0.0) for question in questions]
        self.most = max(self.most, len(self.waiting))

    def take(self) -> list[Answer]:
        if self.away:
            return []
        taken, self.waiting = self.waiting, []
        return taken

    def wait_for_news(self, _: float) -> None:
        pass


class Clock:
    """One rank's exchanges, a second each."""

    world = SimpleNamespace(rank=0, ranks=1)
    now = 0.0

    def exchange(self, answers: Sequence[Answer], *, now: float, signal: Signal) -> Exchange:
        self.now += 1.0
        return Exchange(self.now, signal, tuple(answers))


def scanned(judge: Judge) -> tuple[JudgedBeta, float, list[str]]:
    turns = (ChatMessage(role="user", content="a"), ChatMessage(role="assistant", content="b"))
    rows = [ChatRow(messages=turns, harm_score=None, line=line + 1) for line in range(ROWS)]
    clock: Any = Clock()
    told: list[str] = []
    client: Any = judge
    guide = JudgedBeta(
        Adaptive.model_validate(
            {"sources": ["target", "probe"], "staleness": {"deadline_s": DEADLINE_S, "max_staleness": 4}}
        ),
        rows=rows,
        order=DataOrder(ROWS, BATCH, 0),
        client=client,
        collective=clock,
        stopping=lambda: False,
        log=lambda _: None,
        tell=lambda _level, message, _data: told.append(message),
        known_scores={},
    )
    guide.start(0)
    guide.scan()
    return guide, clock.now, told


def test_the_whole_file_is_read_before_the_first_step_a_window_at_a_time() -> None:
    judge = Judge(away=False)
    guide, _, told = scanned(judge)
    assert len(guide.controller.ledger.target) == ROWS
    assert guide.controller.cursor >= -1
    assert judge.most <= 512 + BATCH
    assert told[-1] == f"the judge has been asked about {ROWS} of {ROWS} rows"
    assert len(told) <= 11


def test_a_judge_that_is_away_is_waited_for_twice_and_not_a_window_at_a_time() -> None:
    guide, took_s, _ = scanned(Judge(away=True))
    assert guide.controller.cursor >= -1
    assert guide.controller.ledger.target == {}
    assert took_s == pytest.approx(2 * DEADLINE_S, abs=4)
