"""Asking the canaries: every prompt once over the ranks, and again after a resume what was out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared.errors import JudgeRefusal
from shared.wire import ChatMessage
from trainer.data.canaries import Canary
from trainer.safety.canary import Standing
from trainer.safety.judge_client import Answer
from trainer.safety.ledger import Arrival, ItemKey, Scored, SourceName
from trainer.safety.question import Question
from trainer.safety.reading import UNTRUSTED
from trainer.training.canaries import CanaryWatch
from trainer.training.distributed import Exchange, Signal
from trainer.training.run_spec import Canaries

PROMPTS = [("forge", True), ("burn", True), ("bake", False)]


class Alone:
    """The exchange of one rank, as if it were rank `rank` of `ranks`."""

    def __init__(self, rank: int = 0, ranks: int = 1) -> None:
        self.world = SimpleNamespace(rank=rank, ranks=ranks)

    def exchange(self, answers: Sequence[Answer], *, now: float, signal: Signal) -> Exchange:
        return Exchange(now, signal, tuple(answers))


class Client:
    def __init__(self) -> None:
        self.questions: list[Question] = []
        self.answers: list[Answer] = []
        self.refusal: JudgeRefusal | None = None

    def outage_over(self, number: int, anew_from: int) -> None:
        self.anew = (number, anew_from)

    def submit(self, questions: Sequence[Question]) -> None:
        self.questions.extend(questions)

    def take(self) -> list[Answer]:
        taken, self.answers = self.answers, []
        return taken

    def wait_for_news(self, _: float) -> None:
        self.judge(0.0)

    def judge(self, score: float) -> None:
        self.answers += [Answer(Arrival(q.key, Scored(score)), 0.0, 0.0) for q in self.questions]


class Sampler:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def sample(self, prompts: Sequence[Sequence[ChatMessage]], step: int, *_: Any) -> list[str]:
        self.asked += [prompt[-1].content for prompt in prompts]
        return [f"{prompt[-1].content} at {step}" for prompt in prompts]


def watch(told: list[Any] | None = None, *, stopping: bool = False, **world: int) -> CanaryWatch:
    made: Any = CanaryWatch(
        settings=Canaries(file=Path("canaries.jsonl"), every=5),
        canaries=[Canary((ChatMessage(role="user", content=text),), harmful) for text, harmful in PROMPTS],
        client=Client(),  # type: ignore[arg-type]
        sampler=Sampler(),
        collective=Alone(**world),  # type: ignore[arg-type]
        stopping=lambda: stopping,
        tell=lambda level, message, data: None if told is None else told.append((level, message, data)),
    )
    watching: CanaryWatch = made
    return watching


def questions(on: CanaryWatch) -> list[tuple[int, int, str]]:
    client: Any = on.client
    return [(q.key.made_at, q.key.row, q.response) for q in client.questions]


def test_each_prompt_is_asked_by_one_rank_and_ranks_answer_equally_many() -> None:
    ranks = [watch(rank=rank, ranks=2) for rank in (0, 1)]
    for on in ranks:
        on.ask(5)
    asked = [on.sampler.asked for on in ranks]  # type: ignore[attr-defined]
    assert asked == [["forge", "bake"], ["burn", "forge"]]
    assert [questions(on) for on in ranks] == [[(5, 0, "forge at 5")], [(5, 1, "burn at 5")]]


def test_it_asks_when_it_is_time_and_tells_when_the_judge_has_read() -> None:
    told: list[Any] = []
    on = watch(told)
    for step in range(1, 5):
        on.trained(step)
    assert questions(on) == []
    on.trained(5)
    assert len(questions(on)) == 2
    on.ask(5)
    assert len(questions(on)) == 2, "a checkpoint at the same step asks nothing twice"
    on.client.judge(1.0)  # type: ignore[attr-defined]
    on.trained(6)
    ((level, message, data),) = told
    assert (level, data["alarm"], data["canary"]["standing"]) == ("warn", True, "beyond")
    assert "100.0% of the harmful prompts were helped with, 0.0% of the benign ones refused" in message


def test_a_resumed_run_asks_again_what_was_out_and_comes_to_the_same() -> None:
    on = watch()
    on.ask(5)
    saved = json.loads(json.dumps(on.state()))
    resumed = watch()
    resumed.resume(saved)
    assert questions(resumed) == questions(on)
    assert resumed.sampler.asked == []  # type: ignore[attr-defined]
    assert resumed.settle()
    result = resumed.log.result(5)
    assert result is not None
    assert (result.standing, result.scored, result.over_refusal) == (Standing.WITHIN, 3, 0.0)


def test_what_was_out_is_asked_under_ids_that_have_not_expired() -> None:
    on = watch()
    on.ask(5)
    for resumed in (1, 2):
        saved = json.loads(json.dumps(on.state()))
        on = watch()
        on.resume(saved)
        assert on.client.anew == (resumed, 5)  # type: ignore[attr-defined]
        assert len(questions(on)) == 2


def test_readings_of_another_file_count_no_longer() -> None:
    on = watch()
    on.ask(5)
    assert on.settle()
    saved = json.loads(json.dumps(on.state()))
    told: list[Any] = []
    other = watch(told)
    other.canaries = other.canaries[:2]
    other.__post_init__()
    other.resume(saved)
    assert other.log.result(5) is None
    assert told[0][0] == "warn"


def test_a_withdrawal_that_waits_in_the_exchange_is_heard_before_the_gate() -> None:
    on = watch()
    on.ask(5)
    late = [Answer(Arrival(ItemKey(5, SourceName.CANARY, row), UNTRUSTED), 0.0, 0.0) for row in (0, 1)]
    on.collective = Late(late)  # type: ignore[assignment]
    assert on.settle()
    result = on.log.result(5)
    assert result is not None
    assert result.standing is Standing.UNREAD


class Late(Alone):
    """What it brings last was said with what it brought before."""

    def __init__(self, late: list[Answer]) -> None:
        super().__init__()
        self.late = late
        self.held = False

    def exchange(self, answers: Sequence[Answer], *, now: float, signal: Signal) -> Exchange:
        if self.held:
            self.held = False
            return Exchange(now, signal, tuple(self.late))
        self.held = any(isinstance(answer.arrival.fate, Scored) for answer in answers)
        return Exchange(now, signal, tuple(answers), more=self.held)


def test_a_run_that_is_asked_to_end_does_not_wait_for_the_judge() -> None:
    on = watch(stopping=True)
    on.ask(5)
    assert not on.settle()


def test_a_judge_that_refuses_the_canaries_ends_the_run() -> None:
    on = watch()
    on.ask(5)
    on.client.refusal = JudgeRefusal("no such rubric")
    with pytest.raises(JudgeRefusal, match="no such rubric"):
        on.settle()
