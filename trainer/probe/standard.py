"""Features brought to mean 0 and standard deviation 1, in a scratch file that one head is fitted on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from trainer.probe.feature_file import FeatureFile
from trainer.probe.features import Pooling
from trainer.probe.head import Floats, Ints, chunks, gather


@dataclass(frozen=True)
class Standard:
    """Rows of a file, as one head sees them."""

    matrix_NH: Floats
    """Mapped from a scratch file. N: the rows that were asked for, in their order."""
    mean_KH: Floats
    scale_KH: Floats
    """Such that `matrix` is the mean over K of (x_k - mean_k) / scale_k."""


class Moments:
    """Mean and deviation of each layer over some rows, computed at most once."""

    def __init__(self, features: FeatureFile, rows: Ints) -> None:
        self.features = features
        self.rows = rows
        self._known: dict[tuple[Pooling, int], tuple[Floats, Floats]] = {}

    def of(self, pooling: Pooling, layer: int) -> tuple[Floats, Floats]:
        key = (pooling, layer)
        if key not in self._known:
            parts = (gather(self.features, pooling, (layer,), part)[:, 0] for part in chunks(self.rows))
            self._known[key] = _mean_and_deviation(parts, self.features.hidden)
        return self._known[key]

    @contextmanager
    def standardised(self, pooling: Pooling, layers: tuple[int, ...], scratch: Path) -> Iterator[Standard]:
        """Removed when the block is left."""
        found = [self.of(pooling, layer) for layer in layers]
        mean_KH, scale_KH = np.stack([m for m, _ in found]), np.stack([s for _, s in found])
        with TemporaryDirectory(dir=scratch) as folder:
            path = Path(folder) / "standard.f32"
            with path.open("wb") as out:
                for part in chunks(self.rows):
                    raw_BKH = gather(self.features, pooling, layers, part)
                    out.write(((raw_BKH - mean_KH) / scale_KH).mean(axis=1).astype(np.float32).tobytes())
            matrix_NH = np.memmap(path, np.float32, "r", shape=(len(self.rows), self.features.hidden))
            yield Standard(matrix_NH, mean_KH, scale_KH)


def _mean_and_deviation(parts: Iterator[Floats], hidden: int) -> tuple[Floats, Floats]:
    """Chan, Golub and LeVeque (1979): chunk by chunk, without cancellation. A constant has deviation 1."""
    count, mean_H, squares_H = 0, np.zeros(hidden), np.zeros(hidden)
    for part_NH in parts:
        here = part_NH.astype(np.float64)
        added, mean = len(here), here.mean(axis=0)
        away_H = mean - mean_H
        squares_H += ((here - mean) ** 2).sum(axis=0) + away_H**2 * count * added / (count + added)
        mean_H += away_H * added / (count + added)
        count += added
    deviation_H = np.sqrt(squares_H / count)
    # What is constant but for rounding must not be blown up.
    deviation_H[deviation_H < 1e-6 * (1 + np.abs(mean_H))] = 1.0
    return mean_H.astype(np.float32), deviation_H.astype(np.float32)
