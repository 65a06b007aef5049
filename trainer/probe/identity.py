"""Which model a probe belongs to. A probe means nothing beside another one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from shared.errors import ModelError

ROWS = 16
"""Rows of each matrix that enter the fingerprint."""


def model_fingerprint(folder: Path) -> str:
    """sha256 over the weights in a transformers folder; 64 hex digits.

    Each tensor's name, type and shape, vectors whole, and of larger tensors 16 evenly spaced rows: enough
    to tell any fine-tune from its base, in a second on a model of many gigabytes. It does not depend on
    how the weights are spread over files. It is no protection against someone who edits weights by hand.

    Raises:
        ModelError: the folder holds no safetensors, or one that cannot be read.
    """
    places: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                places |= dict.fromkeys(opened.keys(), file)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} cannot be read as safetensors: {error}") from error
    if not places:
        raise ModelError(
            f"{folder} holds no *.safetensors, by which a probe knows its model;"
            " save the model again with save_pretrained"
        )
    digest = hashlib.sha256()
    for name in sorted(places):
        with safe_open(places[name], framework="pt") as opened:
            part = opened.get_slice(name)
            shape = part.get_shape()
            digest.update(json.dumps([name, part.get_dtype(), shape]).encode())
            if len(shape) < 2 or shape[0] <= ROWS:
                digest.update(_bytes(opened.get_tensor(name)))
            else:
                for row in range(ROWS):
                    at = row * (shape[0] - 1) // (ROWS - 1)
                    digest.update(_bytes(part[at : at + 1]))
    return digest.hexdigest()


def template_hash(tokenizer: Any) -> str:
    """sha256 over the chat template and the vocabulary; 64 hex digits."""
    digest = hashlib.sha256(str(tokenizer.chat_template).encode())
    digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    return digest.hexdigest()


def _bytes(tensor: Any) -> bytes:
    import torch

    # As bytes: numpy knows no bfloat16.
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
