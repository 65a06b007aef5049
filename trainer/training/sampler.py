"""What the current policy answers, for the judge to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shared.jobs import PolicySource
from trainer.evaluation.generate import generate
from trainer.training.data import Example
from trainer.training.distributed import World
from trainer.training.engine import Engine
from trainer.training.guide import last_turn


class InlineSampler:
    """Generates with the training engine itself, between two steps. All ranks join: under ZeRO-3 each
    forward gathers weights from all of them."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        examples: Sequence[Example],
        source: PolicySource,
        world: World,
        seed: int,
        max_length: int,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._examples = examples
        self._source = source
        self._world = world
        self._seed = seed
        self._max_prompt = max(1, max_length - source.max_new_tokens)
        self._in_step = engine.training.zero_stage == 3 and world.ranks > 1

    def sample(self, rows: Sequence[int], step: int) -> list[str]:
        """One answer a row. A prompt that leaves no room for an answer loses its beginning."""
        # A rank without rows still takes part in the others' gathers.
        asked = list(rows) if rows or not self._in_step else [0]
        if not asked:
            return []
        answers = generate(
            self._engine.objective.policy,
            self._tokenizer,
            [
                [
                    {"role": turn.role, "content": turn.content}
                    for turn in last_turn(self._examples[row].row)[0]
                ]
                for row in asked
            ],
            max_new_tokens=self._source.max_new_tokens,
            batch_size=len(asked),
            temperature=self._source.temperature,
            # A function of (seed, step, rank), so that a resumed run says the same.
            seed=hash((self._seed, step, self._world.rank)) & 0x7FFFFFFF,
            max_prompt=self._max_prompt,
            to_the_end=self._in_step,
        )
        return answers[: len(rows)]
