"""What is read of the hidden states, by hand on small tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shared.errors import DataError, ModelError
from trainer.probe.features import POOLINGS, last_positions, prompt_features

LENGTHS = (3, 1, 4)
HIDDEN, LAYERS = 5, 3


def token_states(row: int, length: int) -> list[Tensor]:
    """Of each layer [length, H], a function of the row alone."""
    generator = torch.Generator().manual_seed(row)
    return [torch.randn(length, HIDDEN, generator=generator) for _ in range(LAYERS)]


def padded(side: str, *, filler: float = 0.0) -> tuple[list[Tensor], Tensor]:
    longest = max(LENGTHS)
    states = [torch.full((len(LENGTHS), longest, HIDDEN), filler) for _ in range(LAYERS)]
    attention_BT = torch.zeros(len(LENGTHS), longest, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        where = slice(0, length) if side == "right" else slice(longest - length, longest)
        attention_BT[row, where] = 1
        for layer, values in enumerate(token_states(row, length)):
            states[layer][row, where] = values
    return states, attention_BT


@pytest.mark.parametrize("side", ["left", "right"])
def test_last_is_the_last_prompt_token(side: str) -> None:
    states, attention_BT = padded(side)
    got = prompt_features(states, attention_BT, last_positions(attention_BT), "last")
    want = torch.stack([torch.stack([v[-1] for v in token_states(r, n)]) for r, n in enumerate(LENGTHS)])
    assert got.shape == (3, LAYERS, HIDDEN)
    assert torch.equal(got, want)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("filler", [0.0, float("nan")])
def test_mean_leaves_padding_out(side: str, filler: float) -> None:
    states, attention_BT = padded(side, filler=filler)
    got = prompt_features(states, attention_BT, last_positions(attention_BT), "mean")
    want = torch.stack([torch.stack([v.mean(0) for v in token_states(r, n)]) for r, n in enumerate(LENGTHS)])
    torch.testing.assert_close(got, want)


def test_the_answer_is_not_read() -> None:
    states, attention_BT = padded("right")
    prompt_ends_B = torch.tensor([1, 0, 2])
    for pooling in POOLINGS:
        before = prompt_features(states, attention_BT, prompt_ends_B, pooling)
        changed = [state.clone() for state in states]
        for state in changed:
            for row, last in enumerate(prompt_ends_B.tolist()):
                state[row, last + 1 :] += 100
        assert torch.equal(prompt_features(changed, attention_BT, prompt_ends_B, pooling), before)


def test_half_precision_is_pooled_in_float32_without_a_gradient() -> None:
    states, attention_BT = padded("right")
    halves = [state.bfloat16().requires_grad_() for state in states]
    for pooling in POOLINGS:
        got = prompt_features(halves, attention_BT, last_positions(attention_BT), pooling)
        assert got.dtype == torch.float32
        assert not got.requires_grad


def test_layers_can_be_chosen() -> None:
    states, attention_BT = padded("left")
    last_B = last_positions(attention_BT)
    whole = prompt_features(states, attention_BT, last_B, "last")
    assert torch.equal(prompt_features(states, attention_BT, last_B, "last", layers=[2, 0]), whole[:, [2, 0]])


def test_an_empty_prompt_is_an_error() -> None:
    states, attention_BT = padded("left")
    attention_BT[1] = 0
    with pytest.raises(DataError, match="example 1 of the batch has no prompt token"):
        prompt_features(states, attention_BT, last_positions(attention_BT), "last")
    with pytest.raises(DataError, match=r"example 0 .* at position 9"):
        prompt_features(states, attention_BT, torch.tensor([9, 3, 3]), "mean")


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_state_that_is_no_number_is_named(pooling: str, bad: float) -> None:
    states, attention_BT = padded("left")
    states[1][2, -1, 0] = bad
    with pytest.raises(ModelError, match="example 2 of the batch at layer 1 is not finite"):
        prompt_features(states, attention_BT, last_positions(attention_BT), pooling)  # type: ignore[arg-type]
