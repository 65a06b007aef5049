"""The linear probe itself: from features to a logit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.probe.feature_file import FeatureFile
from trainer.probe.features import Pooling

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

CHUNK = 4096
"""Rows that are worked on at once."""


@dataclass(frozen=True)
class Head:
    """`logit = bias + weight . mean over K of (x_k - mean_k) / scale_k`; K is 1 unless layers are pooled."""

    pooling: Pooling
    layers: tuple[int, ...]
    """K indices into the hidden states."""
    mean_KH: Floats
    scale_KH: Floats
    weight_H: Floats
    bias: float

    @property
    def name(self) -> str:
        return head_name(self.pooling, self.layers)

    def logits(self, features_BKH: NDArray[Any]) -> Doubles:
        """[B]. `features_BKH`: of this head's pooling, of its layers in their order."""
        standard_BH = ((features_BKH - self.mean_KH) / self.scale_KH).mean(axis=1)
        return np.asarray(standard_BH @ self.weight_H + self.bias, dtype=np.float64)

    def logits_of(self, features: FeatureFile, rows: Ints) -> Doubles:
        """[len(rows)], read from the file in chunks."""
        parts = [self.logits(gather(features, self.pooling, self.layers, part)) for part in chunks(rows)]
        return np.concatenate(parts) if parts else np.zeros(0)


def head_name(pooling: Pooling, layers: Sequence[int]) -> str:
    """`last/3`, or `mean/all` for pooled layers: how people and files name a head."""
    return f"{pooling}/{layers[0] if len(layers) == 1 else 'all'}"


def gather(features: FeatureFile, pooling: Pooling, layers: Sequence[int], rows: Ints) -> Floats:
    """[len(rows), K, H]"""
    return np.stack([features.matrix(pooling, layer)[rows] for layer in layers], axis=1)


def chunks(rows: Ints) -> Iterator[Ints]:
    for at in range(0, len(rows), CHUNK):
        yield rows[at : at + CHUNK]
