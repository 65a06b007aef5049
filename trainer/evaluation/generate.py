"""Answers of a model to many chat prompts, batched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared.errors import ConfigError, ModelError

Messages = Sequence[dict[str, str]]
"""Turns `{"role", "content"}`, the last one the user's."""


def load_for_generation(folder: Path) -> tuple[Any, Any]:
    """Model (eval mode) and tokenizer of a transformers folder.

    Raises:
        ModelError: the folder does not hold them.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"no model can be loaded from {str(folder)!r}: {error}") from error
    return model.eval(), tokenizer


@torch.no_grad()  # not inference_mode: under ZeRO-3 what it gathers would be barred from training
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Messages],
    *,
    max_new_tokens: int = 48,
    batch_size: int = 100,
    temperature: float = 0.0,
    seed: int = 0,
    max_prompt: int | None = None,
    to_the_end: bool = False,
    on_done: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """One answer a prompt, in the prompts' order, without special tokens.

    `temperature` 0 is greedy; sampled answers depend on the seed and the batch size, and leave torch's
    global generator alone. A prompt of more than `max_prompt` tokens loses its beginning. With
    `to_the_end` every call takes `max_new_tokens` forwards, whatever the answers: under ZeRO-3 all ranks
    must take equally many. `on_done` is told how many prompts each finished batch held.

    Raises:
        ConfigError: a negative temperature, or no tokens or rows asked for.
    """
    if temperature < 0 or max_new_tokens < 1 or batch_size < 1:
        raise ConfigError(
            f"temperature {temperature}, max_new_tokens {max_new_tokens}, batch_size {batch_size}:"
            " needs >= 0, >= 1, >= 1"
        )
    encoded = [_prompt_ids(tokenizer, prompt) for prompt in prompts]
    if max_prompt is not None:
        encoded = [ids[-max_prompt:] for ids in encoded]
    generator = torch.Generator(device=model.device).manual_seed(seed) if temperature > 0 else None
    answers = [""] * len(prompts)
    # Prompts of like length together: little padding.
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    with _evaluating(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            new_ids = _answer_batch(
                model,
                tokenizer,
                [encoded[i] for i in chosen],
                max_new_tokens,
                temperature,
                generator,
                to_the_end=to_the_end,
            )
            for index, ids in zip(chosen, new_ids, strict=True):
                answers[index] = tokenizer.decode(ids, skip_special_tokens=True)
            on_done(len(chosen))
    return answers


def _prompt_ids(tokenizer: Any, prompt: str | Messages) -> list[int]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _answer_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
    *,
    to_the_end: bool,
) -> list[list[int]]:
    """New ids of each prompt up to, and without, its end token. One cached step a token for all rows."""
    longest = max(map(len, prompts))
    device = model.device
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    pad = end if pad is None else pad
    ids_BT = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask_BT = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    position_B1 = mask_BT.sum(1, keepdim=True)
    out = model(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        position_ids=(mask_BT.cumsum(1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    ended_B = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    steps: list[torch.Tensor] = []
    while True:
        next_B = _choose(out.logits[:, -1], temperature, generator)
        ended_B |= next_B == end
        steps.append(torch.where(ended_B, end, next_B))
        if len(steps) == max_new_tokens or (bool(ended_B.all()) and not to_the_end):
            break
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(prompts), 1)], dim=1)
        out = model(
            input_ids=steps[-1][:, None],
            attention_mask=mask_BT,
            position_ids=position_B1 + len(steps) - 1,
            past_key_values=out.past_key_values,
            use_cache=True,
        )
    rows = torch.stack(steps, dim=1).tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


def _choose(logits_BV: torch.Tensor, temperature: float, generator: torch.Generator | None) -> torch.Tensor:
    if generator is None:
        return logits_BV.argmax(-1)
    return torch.multinomial((logits_BV.float() / temperature).softmax(-1), 1, generator=generator)[:, 0]
