"""Answers that do not fit into one exchange: none times out while it waits to be told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from shared.safety import Adaptive
from shared.wire import ChatMessage
from trainer.data.rows import ChatRow
from trainer.safety.judge_client import Answer
from trainer.safety.ledger import Arrival, Scored
from trainer.training import guide as guide_module
from trainer.training.distributed import SLOTS, Collective, World
from trainer.training.guide import JudgedBeta
from trainer.training.order import DataOrder

BATCH = 16
BATCHES = 2 * SLOTS // BATCH + 1


@pytest.fixture
def collective(tmp_path: Any) -> Iterator[Collective]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield Collective(World(0, 1, 0, torch.device("cpu")))
    dist.destroy_process_group()


class Prompt:
    """Has every answer ready, in one piece."""

    refusal = trouble = None
    state = ""

    def __init__(self) -> None:
        self.ready: list[Answer] = []

    def submit(self, questions: Any) -> None:
        self.ready += [Answer(Arrival(question.key, Scored(0.5)), 0.0, 0.0) for question in questions]

    def take(self) -> list[Answer]:
        taken, self.ready = self.ready, []
        return taken

    def wait_for_news(self, _: float) -> None:
        pass


def test_a_model_that_loads_longer_than_the_deadline_costs_no_verdict(
    collective: Collective, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = (ChatMessage(role="user", content="a"), ChatMessage(role="assistant", content="b"))
    rows = [ChatRow(messages=turns, harm_score=None, line=n + 1) for n in range(BATCH * BATCHES)]
    client: Any = Prompt()
    guide = JudgedBeta(
        Adaptive.model_validate({"sources": [{"type": "target", "look_ahead": BATCHES}]}),
        rows=rows,
        order=DataOrder(len(rows), BATCH, 0),
        client=client,
        collective=collective,
        stopping=lambda: False,
        log=lambda _: None,
        tell=lambda *_: None,
        known_scores={},
    )
    now = 1000.0
    monkeypatch.setattr(guide_module.time, "time", lambda: now)
    guide.start(0)
    now += 90.0  # past deadline_s
    guide.guide(0, guide._order.rows(0))
    assert len(guide.controller.ledger.target) == len(rows)
    counts = guide.controller.counts
    assert (counts.timeouts, counts.late) == (0, 0)
