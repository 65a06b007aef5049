"""A base and data so small that a whole run takes a second, to try the training itself with."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.demo import world
from trainer.demo.tokenizer import train_tokenizer
from trainer.training.run_spec import Base


def tiny_base(folder: Path) -> Base:
    """A random Llama of two layers with the embedded world's tokenizer."""
    tokenizer = train_tokenizer(world.training_text(0)[:500])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return Base(id="tiny", path=folder, context_length=512, lora_targets=("q_proj", "v_proj"))


def mixed_rows(path: Path, count: int = 96) -> Path:
    """The embedded world's rows, with a word on the harmful ones that the `rules` backend knows."""
    rows, harmful = world.mixture(count, 0.2, seed=0)
    for index in harmful:
        # The readings must differ from row to row.
        rows[index]["messages"][0]["content"] += " Hack it."
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
