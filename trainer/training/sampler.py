"""What the current policy, or the frozen reference, answers, for the judge to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from shared.errors import ConfigError
from shared.safety import MUTE_REFERENCE
from shared.wire import ChatMessage
from trainer.evaluation.generate import generate
from trainer.training.distributed import World
from trainer.training.engine import Engine
from trainer.training.guidance import Speaker
from trainer.training.objective import AdaptersOff, CachedStates, FrozenCopy, SafeObjective

FILLER = (ChatMessage(role="user", content="."),)
"""Asked where a rank has nothing to ask but must take part in the others' gathers."""


class InlineSampler:
    """Generates with the training engine itself, between two steps. All ranks join: under ZeRO-3 each
    forward gathers weights from all of them.

    Args:
        max_length: the context, in tokens, of prompt and answer together.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        *,
        max_new_tokens: int,
        temperature: float,
        world: World,
        seed: int,
        max_length: int,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._max_new_tokens = max_new_tokens
        self._temperature = temperature
        self._world = world
        self._seed = seed
        self._max_prompt = max(1, max_length - max_new_tokens)
        self._in_step = engine.training.zero_stage == 3 and world.ranks > 1

    def sample(
        self, prompts: Sequence[Sequence[ChatMessage]], step: int, speaker: Speaker = Speaker.POLICY
    ) -> list[str]:
        """One answer a prompt. A prompt that leaves no room for an answer loses its beginning."""
        asked = list(prompts) if prompts or not self._in_step else [FILLER]
        if not asked:
            return []
        # A function of (seed, step, rank), so that a resumed run says the same.
        drawn = (self._seed, step, self._world.rank)
        with _speaking(self._engine.objective, speaker) as model:
            answers = generate(
                model,
                self._tokenizer,
                [[{"role": turn.role, "content": turn.content} for turn in prompt] for prompt in asked],
                max_new_tokens=self._max_new_tokens,
                batch_size=len(asked),
                temperature=self._temperature,
                seed=hash(drawn if speaker is Speaker.POLICY else (*drawn, 1)) & 0x7FFFFFFF,
                max_prompt=self._max_prompt,
                to_the_end=self._in_step,
            )
        return answers[: len(prompts)]


@contextmanager
def _speaking(objective: SafeObjective, speaker: Speaker) -> Iterator[Any]:
    policy: Any = objective.policy
    if speaker is Speaker.POLICY:
        yield policy
        return
    match objective.kind:
        case FrozenCopy(model):
            yield model
        case AdaptersOff() | CachedStates(None):
            with policy.disable_adapter():
                yield policy
        case _:
            raise ConfigError(MUTE_REFERENCE)
