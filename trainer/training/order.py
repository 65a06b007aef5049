"""Which rows a step trains: a pure function of (seed, step), so that a run resumes at any step and
the sampler can look ahead without touching the data."""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache

from shared.errors import ConfigError
from shared.training import Training


@lru_cache(maxsize=4)
def _permutation(n_rows: int, seed: int, epoch: int) -> tuple[int, ...]:
    rows = list(range(n_rows))
    random.Random(f"{seed}:{epoch}").shuffle(rows)
    return tuple(rows)


WINDOW = 32
"""Batches of the shuffled stream within which rows of like length are put together."""

KEPT_WINDOWS = 8
"""Of those computed: steps, and those that look ahead of them, go from one to the next."""


class DataOrder:
    """An endless stream of shuffled epochs, cut into batches. It does not end with the run: the last
    steps look ahead like any other.

    Args:
        lengths: of each row, in tokens, where rows of like length are to share a batch. Rows then change
            places within a window of the stream, never across an epoch's end.
    """

    def __init__(self, n_rows: int, batch_size: int, seed: int, lengths: Sequence[int] | None = None) -> None:
        self.n_rows = n_rows
        self.batch_size = batch_size
        self.seed = seed
        self._lengths = lengths
        self._windows: OrderedDict[int, tuple[tuple[int, ...], ...]] = OrderedDict()

    def rows(self, step: int) -> tuple[int, ...]:
        """The rows of optimizer step `step` (from 0), over all ranks."""
        if self._lengths is None:
            return self._stream(step)
        epoch = step * self.batch_size // self.n_rows
        # The epoch's batches that hold no row of another: [first, beyond).
        first = -(-epoch * self.n_rows // self.batch_size)
        beyond = (epoch + 1) * self.n_rows // self.batch_size
        if not first <= step < beyond:
            return self._stream(step)
        begin = first + (step - first) // WINDOW * WINDOW
        return self._window(begin, min(begin + WINDOW, beyond), self._lengths)[step - begin]

    def _stream(self, step: int) -> tuple[int, ...]:
        first = step * self.batch_size
        return tuple(
            _permutation(self.n_rows, self.seed, position // self.n_rows)[position % self.n_rows]
            for position in range(first, first + self.batch_size)
        )

    def _window(self, begin: int, end: int, lengths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """The batches of the steps `begin` to `end` - 1."""
        found = self._windows.get(begin)
        if found is None:
            rows = [row for step in range(begin, end) for row in self._stream(step)]
            rows.sort(key=lambda row: lengths[row])
            size = self.batch_size
            batches = [tuple(rows[at : at + size]) for at in range(0, len(rows), size)]
            # Or every window would go from the short rows to the long ones.
            random.Random(f"{self.seed}:window:{begin}").shuffle(batches)
            found = self._windows[begin] = tuple(batches)
            if len(self._windows) > KEPT_WINDOWS:
                self._windows.popitem(last=False)
        return found


def rank_share(rows: tuple[int, ...], rank: int, ranks: int) -> tuple[int, ...]:
    """The rows that one rank takes: every `ranks`-th."""
    return rows[rank::ranks]


def micro_shares(count: int, rank: int, ranks: int, micro: int) -> list[tuple[int, ...]]:
    """Which of a step's `count` rows, by their place, a rank takes at once, in order."""
    mine = rank_share(tuple(range(count)), rank, ranks)
    return [mine[at : at + micro] for at in range(0, len(mine), micro)]


def plan_steps(training: Training, n_rows: int) -> int:
    """Optimizer steps of the run."""
    if training.steps is not None:
        return training.steps
    return max(1, math.ceil(training.n_epochs * n_rows / training.batch_size))


def micro_batch_size(training: Training, ranks: int) -> int:
    """Examples a rank takes at once.

    Raises:
        ConfigError: the batch does not divide over ranks and micro-batches.
    """
    if training.batch_size % ranks:
        raise ConfigError(
            f"batch_size {training.batch_size} does not divide over {ranks} ranks;"
            f" choose a multiple of {ranks}"
        )
    share = training.batch_size // ranks
    micro = training.micro_batch_size or share
    if share % micro:
        raise ConfigError(
            f"micro_batch_size {micro} does not divide a rank's share of the batch, {share}"
            f" (batch_size {training.batch_size} over {ranks} ranks)"
        )
    return micro
