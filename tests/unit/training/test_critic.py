"""Which layers a probe reads, which rows share a fold, and what stands before an answer."""

from __future__ import annotations

import pytest
import torch

from shared.errors import ConfigError, DataError
from shared.wire import ChatMessage
from trainer.data.rows import ChatRow
from trainer.safety.probe.fit import FOLDS
from trainer.training.critic import chosen_layers, fold_of
from trainer.training.data import Example, collate, collate_prompts
from trainer.training.order import micro_shares, rank_share


def example(prompt: str, answer: str = "yes", length: int = 3, first: int = 10) -> Example:
    """`first`: of its token ids, which stand for its prompt."""
    turns = (ChatMessage(role="user", content=prompt), ChatMessage(role="assistant", content=answer))
    ids = tuple(range(first, first + length + 2))
    row = ChatRow(messages=turns, harm_score=None, line=4)
    return Example(row, ids, (False,) * length + (True, True), truncated=False)


@pytest.mark.parametrize(
    ("layers", "expected"), [(32, (8, 16, 24, 32)), (4, (1, 2, 3, 4)), (2, (1, 2)), (1, (1,))]
)
def test_by_default_four_depths_are_read(layers: int, expected: tuple[int, ...]) -> None:
    assert chosen_layers(None, layers) == expected


def test_layers_that_are_named_are_read_once_each() -> None:
    assert chosen_layers((3, 0, 3), 4) == (0, 3)
    with pytest.raises(ConfigError, match=r"names 5, 9; the base has the layers 0 \(embeddings\) to 4"):
        chosen_layers((5, 1, 9), 4)


def test_rows_with_one_prompt_share_a_fold() -> None:
    folds = [fold_of(example("", first=n)) for n in range(200)]
    assert set(folds) == set(range(FOLDS))
    # By the tokens that are read: of a chat that was cut off, an earlier turn's.
    assert fold_of(example("a longer chat", "another answer", first=7)) == folds[7]


def test_a_row_without_a_prompt_is_named() -> None:
    with pytest.raises(DataError, match=r"4.*nothing before its last answer"):
        fold_of(example("", length=0))


def test_prompts_alone_end_where_they_end_before_an_answer() -> None:
    examples = [example("a", length=3), example("b", length=6)]
    whole, prompts = collate(examples, pad_id=0), collate_prompts(examples, pad_id=0)
    assert torch.equal(whole.prompt_end_B, torch.tensor([2, 5]))
    assert torch.equal(prompts.prompt_end_B, whole.prompt_end_B)
    assert prompts.ids_BT.tolist() == [[10, 11, 12, 0, 0, 0], [10, 11, 12, 13, 14, 15]]
    assert prompts.attention_BT.sum(dim=1).tolist() == [3, 6]
    assert prompts.label_N.numel() == 0


def test_micro_shares_are_a_ranks_share_in_order() -> None:
    for ranks in (1, 2, 4):
        shares = [micro_shares(16, rank, ranks, 2) for rank in range(ranks)]
        for rank, share in enumerate(shares):
            assert [at for part in share for at in part] == list(rank_share(tuple(range(16)), rank, ranks))
            assert {len(part) for part in share} == {2}
