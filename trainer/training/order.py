"""Which rows a step trains: a pure function of (seed, step), so that a run resumes at any step and
the sampler can look ahead without touching the data."""

from __future__ import annotations

import math
import random
from functools import lru_cache

from shared.errors import ConfigError
from shared.jobs import Training


@lru_cache(maxsize=4)
def _permutation(n_rows: int, seed: int, epoch: int) -> tuple[int, ...]:
    rows = list(range(n_rows))
    random.Random(f"{seed}:{epoch}").shuffle(rows)
    return tuple(rows)


class DataOrder:
    """An endless stream of shuffled epochs, cut into batches. It does not end with the run: the last
    steps look ahead like any other."""

    def __init__(self, n_rows: int, batch_size: int, seed: int) -> None:
        self.n_rows = n_rows
        self.batch_size = batch_size
        self.seed = seed

    def rows(self, step: int) -> tuple[int, ...]:
        """The rows of optimizer step `step` (from 0), over all ranks."""
        first = step * self.batch_size
        return tuple(
            _permutation(self.n_rows, self.seed, position // self.n_rows)[position % self.n_rows]
            for position in range(first, first + self.batch_size)
        )


def rank_share(rows: tuple[int, ...], rank: int, ranks: int) -> tuple[int, ...]:
    """The rows that one rank takes: every `ranks`-th."""
    return rows[rank::ranks]


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
