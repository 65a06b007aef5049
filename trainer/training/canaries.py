"""Asks the current policy the canary prompts, and has the judge grade the answers, beside the training."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shared.errors import JudgeRefusal
from trainer.data.canaries import Canary
from trainer.safety.canary import CanaryLog, Limits, Result, Standing
from trainer.safety.judge_client import Answer, JudgeClient
from trainer.safety.ledger import Arrival, ItemKey, Scored, SourceName
from trainer.safety.question import Question
from trainer.safety.refusal import refuses
from trainer.training.distributed import Collective, Exchange, Signal
from trainer.training.guidance import Sampler
from trainer.training.guide import POLL_S
from trainer.training.oversight import Tell
from trainer.training.run_spec import Canaries

AT_ONCE = 32
"""Prompts that a rank answers together."""


@dataclass
class CanaryWatch:
    """One rank's part. Every rank calls every method equally often.

    `collective` must be its own: what waits in it for the next exchange would else reach the guide.
    """

    settings: Canaries
    canaries: Sequence[Canary]
    client: JudgeClient
    sampler: Sampler
    collective: Collective
    stopping: Callable[[], bool]
    tell: Tell

    def __post_init__(self) -> None:
        limits = Limits(
            max_asr=self.settings.max_asr,
            max_over_refusal=self.settings.max_over_refusal,
            harmful_from=self.settings.harmful_from,
            min_scored=self.settings.min_scored,
        )
        self.log = CanaryLog([c.harmful for c in self.canaries], limits, self.settings.deadline_s)
        self._asked: dict[ItemKey, Question] = {}
        """This rank's questions that have no answer yet."""
        self._said: dict[ItemKey, Answer] = {}
        """Of this rank's answers that no judge need read, those that the log has not."""
        self._untold: list[Answer] = []
        """Of these, those that the other ranks have not been sent."""
        self._resumed = 0
        self._file = fingerprint(self.canaries)

    def trained(self, step: int) -> None:
        """After each step: asks if it is time, and hears what has come."""
        if step % self.settings.every == 0:
            self.ask(step)
        if self.log.unresolved:
            self._hear()

    def ask(self, step: int) -> None:
        """Has the policy, which has trained `step` steps, answer; nothing where it was asked already."""
        if self.log.is_open(step):
            return
        world = self.collective.world
        # To a whole number a rank: under ZeRO-3 the ranks must take equally many forwards.
        rounds = -(-len(self.canaries) // world.ranks)
        mine = [(world.rank + turn * world.ranks) % len(self.canaries) for turn in range(rounds)]
        answers: list[str] = []
        for at in range(0, rounds, AT_ONCE):
            chosen = [self.canaries[index].prompt for index in mine[at : at + AT_ONCE]]
            answers += self.sampler.sample(chosen, step)
        # Its age is the judge's time, not that of the answers.
        self.log.open(step, self._exchange([], Signal.GO_ON).now)
        questions = []
        for turn, (index, answer) in enumerate(zip(mine, answers, strict=True)):
            if world.rank + turn * world.ranks >= len(self.canaries):
                continue  # another rank's too
            key = ItemKey(step, SourceName.CANARY, index)
            if self.canaries[index].harmful:
                questions.append(Question(key, self.canaries[index].prompt, answer))
            else:
                self._say(_said(step, index, float(refuses(answer))))
        self._ask(questions)

    def settle(self) -> bool:
        """Waits until every reading is whole, at most for the deadline. False where the run is to end."""
        while True:
            heard = self._hear()
            # What is on its way between ranks may withdraw a verdict.
            if not self.log.unresolved and not heard.more:
                return True
            if heard.signal is Signal.STOP:
                return False
            self.client.wait_for_news(POLL_S)

    def _ask(self, questions: Sequence[Question]) -> None:
        self._asked.update((question.key, question) for question in questions)
        self.client.submit(questions)

    def _say(self, answer: Answer) -> None:
        self._said[answer.arrival.key] = answer
        self._untold.append(answer)

    def _hear(self) -> Exchange:
        signal = Signal.STOP if self.stopping() else Signal.GO_ON
        if self.client.refusal:
            signal = Signal.REFUSED
        told, self._untold = [*self._untold, *self.client.take()], []
        heard = self._exchange(told, signal)
        if heard.signal is Signal.REFUSED:
            raise self.client.refusal or JudgeRefusal("the judge refused another rank's canaries")
        self._asked = {key: q for key, q in self._asked.items() if self.log.lacks(key.made_at, key.row)}
        self._said = {key: a for key, a in self._said.items() if self.log.lacks(key.made_at, key.row)}
        return heard

    def _exchange(self, told: Sequence[Answer], signal: Signal) -> Exchange:
        """Every exchange may bring what waited since the one before."""
        heard = self.collective.exchange(told, now=time.time(), signal=signal)
        for result in self.log.receive(heard.arrivals, heard.now):
            self._tell(result)
        return heard

    def _tell(self, result: Result) -> None:
        asr = _percent(result.asr)
        figures = f"canaries at step {result.step}: {asr} of the harmful prompts were helped with"
        if result.over_refusal is not None:
            figures += f", {_percent(result.over_refusal)} of the benign ones refused"
        limits = f"at most {self.settings.max_asr:.1%}, {self.settings.max_over_refusal:.1%}"
        match result.standing:
            case Standing.WITHIN:
                self.tell("info", figures, {"canary": result.to_json()})
            case Standing.BEYOND:
                message = f"{figures}: beyond the limits ({limits}); this step's model is not to be published"
                self.tell("warn", message, {"canary": result.to_json(), "alarm": True})
            case Standing.UNREAD:
                message = (
                    f"canaries at step {result.step}: of {result.asked} answers only {result.scored} have a"
                    " verdict, too few to tell; this step's model is not to be published"
                )
                self.tell("warn", message, {"canary": result.to_json(), "alarm": True})

    def state(self) -> dict[str, Any]:
        return {
            "file": self._file,
            "resumed": self._resumed,
            "log": self.log.to_state(),
            "unanswered": [question.to_json() for question in self._asked.values()],
            "said": [
                [said.arrival.key.made_at, said.arrival.key.row, said.arrival.fate.score]
                for said in self._said.values()
                if isinstance(said.arrival.fate, Scored)
            ],
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Takes up a checkpoint's state, and asks again what was out."""
        self._resumed = state["resumed"] + 1
        if state["file"] != self._file:
            self.client.outage_over(self._resumed, 0)
            self.tell(
                "warn",
                "the canary prompts are not those of before: earlier readings no longer count",
                None,
            )
            return
        self.log.restore(state["log"], self._exchange([], Signal.GO_ON).now)
        # Under ids of their own: what was out may have expired at the judge, and an id keeps its verdict.
        self.client.outage_over(self._resumed, self.log.first_open)
        self._ask([Question.from_json(raw) for raw in state["unanswered"]])
        for step, index, score in state["said"]:
            self._say(_said(step, index, score))

    def close(self) -> None:
        self.client.close()


def fingerprint(canaries: Sequence[Canary]) -> str:
    """Fates are kept by a prompt's place in the file: they hold for that file alone."""
    told = [[canary.harmful, [turn.model_dump(mode="json") for turn in canary.prompt]] for canary in canaries]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _said(step: int, index: int, refused: float) -> Answer:
    return Answer(Arrival(ItemKey(step, SourceName.CANARY, index), Scored(refused)), 0.0, 0.0)


def _percent(share: float | None) -> str:
    return "none read" if share is None else f"{share:.1%}"
