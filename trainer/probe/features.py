"""What the probe reads: a model's hidden states at the prompt, one vector a layer.

Layer 0 is the embeddings' output, layer l the output of block l, the last one as the model's head sees it
(after the final norm). Both the probe's own forward and the reference forward of a training step go
through here, so that a probe fitted beforehand reads the same thing in training.

B: examples, T: positions, H: hidden size, L: layers that are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from shared.errors import DataError, ModelError

Pooling = Literal["last", "mean"]
POOLINGS: tuple[Pooling, ...] = ("last", "mean")


def prompt_features(
    states: Sequence[Tensor],
    attention_BT: Tensor,
    last_at_B: Tensor,
    pooling: Pooling,
    *,
    layers: Sequence[int] | None = None,
    finite: bool = True,
) -> Tensor:
    """[B, L, H], float32, on the states' device, without a gradient.

    Args:
        states: of every layer [B, T, H], as `output_hidden_states=True` gives them.
        attention_BT: 1 at tokens, 0 at padding; padding may stand on either side.
        last_at_B: index t of each example's last prompt token: the one after which the assistant speaks.
        pooling: `last` reads that token; `mean` is the mean over all of the prompt's tokens, the chat
            template's own included, and nothing of the answer.
        layers: indices into `states`; None: all.
        finite: False where the caller looks for what is not finite itself.

    Raises:
        DataError: an example has no prompt.
        ModelError: a state is not finite; names row and layer.
    """
    chosen = range(len(states)) if layers is None else layers
    rows_B = torch.arange(len(last_at_B), device=attention_BT.device)
    last_at_B = last_at_B.to(attention_BT.device)
    _check_prompts(attention_BT, last_at_B)
    if pooling == "last":
        pooled = [states[layer][rows_B, last_at_B].detach().float() for layer in chosen]
    else:
        at_T = torch.arange(attention_BT.shape[1], device=attention_BT.device)
        prompt_BT = attention_BT.bool() & (at_T <= last_at_B[:, None])
        pooled = [_mean(states[layer].detach(), prompt_BT) for layer in chosen]
    features_BLH = torch.stack(pooled, dim=1)
    if finite:
        _check_finite(features_BLH, chosen)
    return features_BLH


def last_positions(attention_BT: Tensor) -> Tensor:
    """[B]: index of each row's last token, where rows hold a prompt and nothing else."""
    at_T = torch.arange(attention_BT.shape[1], device=attention_BT.device)
    return torch.where(attention_BT.bool(), at_T, -1).amax(dim=1)


def _mean(states_BTH: Tensor, prompt_BT: Tensor) -> Tensor:
    # By `where`, not by a product: what stands at padding may be no number.
    kept_BTH = torch.where(prompt_BT[:, :, None], states_BTH.float(), 0.0)
    return kept_BTH.sum(dim=1) / prompt_BT.sum(dim=1, keepdim=True)


def _check_prompts(attention_BT: Tensor, last_at_B: Tensor) -> None:
    inside_B = (last_at_B >= 0) & (last_at_B < attention_BT.shape[1])
    at_B1 = last_at_B.clamp(0, attention_BT.shape[1] - 1)[:, None]
    present_B = inside_B & attention_BT.gather(1, at_B1)[:, 0].bool()
    if not bool(present_B.all()):
        row = int((~present_B).nonzero()[0, 0])
        raise DataError(
            f"example {row} of the batch has no prompt token at position {int(last_at_B[row])}: an empty"
            " prompt has nothing to read; leave the example out"
        )


def _check_finite(features_BLH: Tensor, layers: Sequence[int]) -> None:
    finite_BL = features_BLH.isfinite().all(dim=2)
    if not bool(finite_BL.all()):
        row, at = (int(value) for value in (~finite_BL).nonzero()[0])
        raise ModelError(
            f"the hidden state of example {row} of the batch at layer {layers[at]} is not finite (NaN or"
            " infinite): the model is broken, or its precision too low; try float32"
        )
