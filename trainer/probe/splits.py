"""Which rows a probe learns from and which it is tried on. Pure.

A prompt that stands on both sides is taken out of the learning side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.probe.fit import MIN_EACH, Bools, folds_of
from trainer.probe.head import Ints

IN_DISTRIBUTION = "in distribution"
PARTS = 5
"""A fifth is held out in distribution."""
FEWEST = 5
"""Rows of a class below which a held-out group is not tried."""


@dataclass(frozen=True)
class Split:
    name: str
    train: Ints
    test: Ints


@dataclass(frozen=True)
class Skipped:
    """A group that cannot be tried, and why."""

    name: str
    reason: str


def plan_splits(
    harmful_N: Bools,
    keys_N: Ints,
    categories: Sequence[str | None],
    datasets: Sequence[str],
    seed: int = 0,
) -> list[Split | Skipped]:
    """In distribution; each category held out; each data set held out, where there are several.

    A held-out group that has one class only is tried beside rows of the other class that the
    in-distribution split holds out too, and that it does not learn from either.
    """
    part_N = folds_of(harmful_N, keys_N, PARTS, seed)
    held_out_N = part_N == 0
    plans: list[Split | Skipped] = [_split(IN_DISTRIBUTION, held_out_N, harmful_N, keys_N)]
    for kind, names in (("category", categories), ("data set", datasets)):
        present = sorted({name for name in names if name is not None})
        if len(present) < 2:
            continue
        for name in present:
            group_N = np.array([other == name for other in names])
            plans.append(_without(f"{kind} {name}", group_N, held_out_N, harmful_N, keys_N))
    return plans


def _without(name: str, group_N: Bools, held_out_N: Bools, harmful_N: Bools, keys_N: Ints) -> Split | Skipped:
    test_N = group_N.copy()
    for side_N in (harmful_N, ~harmful_N):
        if not (group_N & side_N).any():
            test_N |= held_out_N & side_N
    return _split(name, test_N, harmful_N, keys_N)


def _split(name: str, test_N: Bools, harmful_N: Bools, keys_N: Ints) -> Split | Skipped:
    train_N = ~test_N & ~np.isin(keys_N, keys_N[test_N])
    for side, of_N, fewest in (("test", test_N, FEWEST), ("learn from", train_N, MIN_EACH)):
        yes, no = int((of_N & harmful_N).sum()), int((of_N & ~harmful_N).sum())
        if min(yes, no) < fewest:
            return Skipped(name, f"{yes} harmful and {no} harmless rows to {side}; {fewest} of each are due")
    return Split(name, np.flatnonzero(train_N), np.flatnonzero(test_N))
