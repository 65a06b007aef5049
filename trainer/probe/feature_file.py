"""Features of many prompts, in a file: what is held in memory does not grow with their number.

[P, L, N, H] float32, so that one pooling of one layer is one contiguous matrix [N, H].
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import DataError, ModelError
from trainer.probe.features import POOLINGS, Pooling
from trainer.probe.reader import PromptReader
from trainer.probe.rows import Labelled

BATCH_TOKENS = 4096
CHUNK = 256
"""Rows that are sorted by length together, so that little of a batch is padding."""

Floats = NDArray[np.float32]
Tell = Callable[[int], None]
"""Told how many rows are done."""


@dataclass(frozen=True)
class FeatureFile:
    path: Path
    layers: int
    rows: int
    hidden: int

    def matrix(self, pooling: Pooling, layer: int) -> Floats:
        """[N, H], mapped from the file."""
        size = self.rows * self.hidden
        offset = (POOLINGS.index(pooling) * self.layers + layer) * size * 4
        return np.memmap(self.path, np.float32, "r", offset, (self.rows, self.hidden))


def extract(
    reader: PromptReader, rows: Iterable[Labelled], count: int, path: Path, tell: Tell = lambda done: None
) -> FeatureFile:
    """Features of the first `count` rows, written to `path` in their order.

    Raises:
        DataError: a row's prompt cannot be read; names its line.
        ModelError: a hidden state is not finite; names the lines of its batch.
    """
    file = FeatureFile(path, reader.layers, count, reader.hidden)
    done = 0
    with path.open("wb") as out:
        for chunk in _chunks(rows, count):
            encoded = [_encode(reader, row) for row in chunk]
            for batch in batches(encoded):
                got = _features(reader, [encoded[at] for at in batch], [chunk[at].line for at in batch])
                for at, values_PLH in zip(batch, np.moveaxis(got, 1, 0), strict=True):
                    _put(out, file, done + at, values_PLH)
            done += len(chunk)
            tell(done)
    return file


def _chunks(rows: Iterable[Labelled], count: int) -> Iterator[list[Labelled]]:
    left = itertools.islice(rows, count)
    while chunk := list(itertools.islice(left, CHUNK)):
        yield chunk


def _encode(reader: PromptReader, row: Labelled) -> list[int]:
    try:
        return reader.encode(row.messages)
    except DataError as error:
        raise DataError(str(error), line=row.line) from error


def batches(encoded: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of prompts of like length, at most BATCH_TOKENS a batch, padding counted."""
    order = sorted(range(len(encoded)), key=lambda at: len(encoded[at]))
    batch: list[int] = []
    for at in order:
        if batch and (len(batch) + 1) * len(encoded[at]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


def _features(reader: PromptReader, prompts: Sequence[Sequence[int]], lines: Sequence[int]) -> NDArray[Any]:
    try:
        return np.asarray(reader.features_of(prompts, POOLINGS).cpu().numpy())
    except ModelError as error:
        raise ModelError(f"{error} (lines {', '.join(map(str, lines[:8]))}, ... of the data)") from error


def _put(out: Any, file: FeatureFile, row: int, values_PLH: NDArray[Any]) -> None:
    # Written, not mapped: pages of a map would count as this process's memory.
    flat = np.ascontiguousarray(values_PLH, dtype=np.float32).reshape(-1, file.hidden)
    for matrix, vector in enumerate(flat):
        os.pwrite(out.fileno(), vector.tobytes(), (matrix * file.rows + row) * file.hidden * 4)
