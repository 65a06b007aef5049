from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.rubrics.encoding import cut_middle, encode_prompt, fair_shares
from shared.rubrics.rubric import Segment


class Letters:
    """One token a character; `$` is its special token, -1, which untrusted text cannot make."""

    bos_token_id = None

    def __call__(
        self, text: str, *, add_special_tokens: bool, split_special_tokens: bool = False
    ) -> dict[str, list[int]]:
        return {"input_ids": [-1 if c == "$" and not split_special_tokens else ord(c) for c in text]}


def segments(request: str, reply: str) -> list[Segment]:
    return [
        Segment("$grade$", trusted=True),
        Segment(request, trusted=False),
        Segment("$", trusted=True),
        Segment(reply, trusted=False),
        Segment("$", trusted=True),
    ]


@given(st.lists(st.integers(0, 500), min_size=1, max_size=6), st.integers(0, 1000))
def test_shares_fill_the_budget_and_spare_the_short(lengths: list[int], budget: int) -> None:
    shares = fair_shares(lengths, budget)
    assert all(0 <= share <= length for share, length in zip(shares, lengths, strict=True))
    assert sum(shares) == min(budget, sum(lengths))
    cut = [share for share, length in zip(shares, lengths, strict=True) if share < length]
    # Nothing that was cut has less than anything else, but for what does not divide evenly.
    assert all(max(shares) - share <= 1 for share in cut)


@given(st.lists(st.integers(), max_size=60), st.integers(0, 60))
def test_a_cut_keeps_head_and_tail(ids: list[int], keep: int) -> None:
    kept = cut_middle(ids, keep, [-1, -1])
    assert len(kept) <= max(keep, 0) or kept == ids
    if len(ids) > keep >= 4:
        at = (keep - 2) - (keep - 2) // 2
        assert kept[:at] == ids[:at]
        assert kept[at : at + 2] == [-1, -1]
        assert kept[at + 2 :] == ids[len(ids) - (keep - 2) // 2 :]


@given(st.text(max_size=300), st.text(max_size=300), st.integers(30, 200))
def test_a_prompt_fits_and_its_frame_is_whole(request: str, reply: str, limit: int) -> None:
    prompt = encode_prompt(Letters(), segments(request, reply), max_tokens=limit)
    ids = prompt.ids
    whole = encode_prompt(Letters(), segments(request, reply), max_tokens=1000)
    assert prompt.truncated is (prompt != whole)
    assert not whole.truncated
    assert len(ids) <= limit
    assert ids[:7] == [-1, *map(ord, "grade"), -1]
    assert ids[-1] == -1
    assert ids.count(-1) == 4


def test_a_rubric_without_room_is_an_error() -> None:
    with pytest.raises(ValueError, match="the rubric takes 9 of the judge's 20 tokens"):
        encode_prompt(Letters(), segments("a", "b"), max_tokens=20)
