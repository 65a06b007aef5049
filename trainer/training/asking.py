"""What is sent to the judge at a step: rows of the file, and what policy and reference answer to them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from shared.safety import Adaptive, TargetSource
from trainer.data.rows import ChatRow, last_turn
from trainer.safety.journal import Journal
from trainer.safety.judge_client import JudgeClient, NoJudge
from trainer.safety.ledger import ItemKey, SourceName
from trainer.safety.question import Question
from trainer.training.distributed import World
from trainer.training.guidance import Sampler, Speaker
from trainer.training.order import DataOrder, rank_share


class Asking:
    """One rank's questions; what a reading holds in all is told to the journal.

    Args:
        rows: the training file; every rank holds all of it, and asks about its own share.
    """

    def __init__(
        self,
        method: Adaptive,
        *,
        rows: Sequence[ChatRow],
        order: DataOrder,
        journal: Journal,
        client: JudgeClient | NoJudge,
        world: World,
    ) -> None:
        self.sampler: Sampler | None = None
        self.generate_s = 0.0
        """Spent on answers since the step began."""
        self._target = next((s for s in method.sources if isinstance(s, TargetSource)), None)
        self._reads_reference = method.reads_reference
        self._rows = rows
        self._order = order
        self._journal = journal
        self._client = client
        self._world = world
        self._asked: dict[ItemKey, Question] = {}
        """Of readings that are not folded yet."""

    def open(self, made_at: int, policy_rows: Sequence[int], now: float) -> None:
        target_rows: list[int] = []
        if self._target is not None:
            target_rows = list(dict.fromkeys(self._order.rows(made_at + self._target.look_ahead)))
        reference_rows = [
            row
            for row in (policy_rows if self._reads_reference else [])
            if self._journal.controller.needs_asking(SourceName.REFERENCE, row)
        ]
        items = [(SourceName.TARGET, row) for row in target_rows]
        items += [(SourceName.POLICY, row) for row in policy_rows]
        items += [(SourceName.REFERENCE, row) for row in reference_rows]
        asked = [row for row in target_rows if self._journal.controller.needs_asking(SourceName.TARGET, row)]
        self._journal.open_reading(made_at, items, now)
        world = self._world
        questions = []
        for row in rank_share(tuple(asked), world.rank, world.ranks):
            prompt, response = last_turn(self._rows[row])
            questions.append(Question(ItemKey(made_at, SourceName.TARGET, row), prompt, response))
        # The target's questions need no generation: let the judge begin on them.
        self.ask(questions)
        self._ask_answers(made_at, policy_rows, Speaker.POLICY)
        self._ask_answers(made_at, reference_rows, Speaker.REFERENCE)

    def _ask_answers(self, made_at: int, rows: Sequence[int], speaker: Speaker) -> None:
        """Has the rows' prompts answered, and the answers judged. `rows` are all ranks'."""
        if not rows:
            return
        if self.sampler is None:
            raise ValueError("a policy source is configured but no sampler was set")
        world = self._world
        mine = rank_share(tuple(rows), world.rank, world.ranks)
        prompts = [last_turn(self._rows[row])[0] for row in mine]
        began = time.monotonic()
        answers = self.sampler.sample(prompts, made_at, speaker)
        self.generate_s += time.monotonic() - began
        source = SourceName(speaker)
        self.ask(
            [
                Question(ItemKey(made_at, source, row), prompt, answer)
                for row, prompt, answer in zip(mine, prompts, answers, strict=True)
            ]
        )

    def ask(self, questions: Sequence[Question]) -> None:
        self._asked.update((question.key, question) for question in questions)
        self._client.submit(questions)

    def folded(self, cursor: int) -> None:
        """What readings up to this one asked needs no asking again."""
        self._asked = {key: question for key, question in self._asked.items() if key.made_at > cursor}

    def unanswered(self) -> list[Any]:
        """For the checkpoint: what a run that goes on from it asks again."""
        outstanding = self._journal.controller.is_outstanding
        return [question.to_json() for key, question in self._asked.items() if outstanding(key)]
