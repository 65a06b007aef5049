"""The reference's features of every row, kept from when they are first known. Pure, but for the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


class FeatureTable:
    """[rows, D], of which those rows stand that were put. They are the reference's and never change."""

    def __init__(self, values_RD: Vectors) -> None:
        self._values_RD = values_RD
        self.known_R: NDArray[np.bool_] = np.zeros(len(values_RD), dtype=bool)
        self.broken: int | None = None
        """The first row that was put whose features are not finite."""

    @classmethod
    def in_memory(cls, rows: int, width: int) -> FeatureTable:
        return cls(np.zeros((rows, width), dtype=np.float32))

    @classmethod
    def in_file(cls, path: Path, rows: int, width: int) -> FeatureTable:
        """Holes where nothing was put take no room. What the file holds already stays: see `known_R`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.exists() and path.stat().st_size == rows * width * np.dtype(np.float32).itemsize
        with path.open("ab") as file:
            file.truncate(rows * width * np.dtype(np.float32).itemsize)
        table = cls(np.memmap(path, dtype=np.float32, mode="r+", shape=(rows, width)))
        table.was_whole = whole
        return table

    was_whole = False
    """The file was there, in its full length, before it was opened."""

    @property
    def width(self) -> int:
        return int(self._values_RD.shape[1])

    def put(self, rows: Sequence[int], values_nD: Vectors) -> None:
        """Rows that are known already keep what they have."""
        for row, value_D in zip(rows, values_nD, strict=True):
            if not self.known_R[row]:
                self._values_RD[row] = value_D
                self.known_R[row] = True
                if self.broken is None and not np.isfinite(value_D).all():
                    self.broken = row

    def flush(self) -> None:
        """To the disk."""
        if isinstance(self._values_RD, np.memmap):
            self._values_RD.flush()

    def of(self, rows: Sequence[int]) -> Vectors:
        """[n, D]. Raises KeyError naming a row that is not known."""
        at_n = np.asarray(rows, dtype=np.int64)
        if not self.known_R[at_n].all():
            raise KeyError(f"the features of row {rows[int(np.argmin(self.known_R[at_n]))]} are not known")
        return self._values_RD[at_n]
