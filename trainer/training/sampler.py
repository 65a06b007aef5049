"""What the current policy answers, for the judge to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from shared.jobs import PolicySource
from trainer.safety.guide import last_turn
from trainer.training.data import Example, template_ids
from trainer.training.distributed import World
from trainer.training.engine import Engine


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
        self._synced = engine.training.zero_stage == 3 and world.ranks > 1

    def sample(self, rows: Sequence[int], step: int) -> list[str]:
        """One answer a row. A prompt that leaves no room for an answer loses its beginning."""
        # A rank without rows still takes part in the others' gathers.
        asked = list(rows) if rows or not self._synced else [0]
        if not asked:
            return []
        prompts = []
        for row in asked:
            turns, _ = last_turn(self._examples[row].row)
            messages = [{"role": turn.role, "content": turn.content} for turn in turns]
            prompts.append(template_ids(self._tokenizer, messages, prompt=True)[-self._max_prompt :])
        longest = max(map(len, prompts))
        pad = self._tokenizer.pad_token_id
        ids_BT = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
        attention_BT = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        policy: Any = self._engine.objective.policy
        policy.eval()
        temperature = self._source.temperature
        with torch.no_grad(), torch.random.fork_rng():
            # A function of (seed, step, rank), so that a resumed run says the same.
            torch.manual_seed(hash((self._seed, step, self._world.rank)) & 0x7FFFFFFF)
            out_BT = policy.generate(
                input_ids=ids_BT.to(self._world.device),
                attention_mask=attention_BT.to(self._world.device),
                max_new_tokens=self._source.max_new_tokens,
                do_sample=temperature > 0,
                temperature=temperature if temperature > 0 else None,
                top_k=None,
                top_p=None,
                pad_token_id=pad,
                synced_gpus=self._synced,
            )
        answers = self._tokenizer.batch_decode(out_BT[:, longest:], skip_special_tokens=True)
        return list(answers[: len(rows)])
