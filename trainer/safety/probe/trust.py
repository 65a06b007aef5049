"""How far a probe's word counts: as far as it has foretold the judge's. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FULL_TRUST_AUROC = 0.7
"""At and above it the probe counts in full. A judge that is blind to most of the harm bounds what can be
reached: of what it calls harmless a part is harmful, and ranks as high as what it calls harmful."""


@dataclass(frozen=True)
class Reliability:
    """Of predictions against verdicts that were not known to whoever predicted them."""

    auroc: float
    error: float
    """Standard error of the AUROC (Hanley & McNeil 1982, doi:10.1148/radiology.143.1.7063747)."""
    harmful: int
    harmless: int

    @property
    def trust(self) -> float:
        """[0,1]: 0 while the AUROC less its standard error is at chance (0.5), 1 from
        `FULL_TRUST_AUROC` on, linear between."""
        sure = self.auroc - self.error
        return min(1.0, max(0.0, (sure - 0.5) / (FULL_TRUST_AUROC - 0.5)))


@dataclass(frozen=True)
class Standing:
    """How the probe stands at a step, for the metrics. None where there is nothing to say yet."""

    trust: float | None = None
    auroc: float | None = None
    """Of what it foretold, against the verdicts."""


def reliability(predicted: Sequence[float], harmful: Sequence[bool]) -> Reliability | None:
    """None where one class is absent: nothing was foretold yet."""
    n_harmful = sum(harmful)
    n_harmless = len(harmful) - n_harmful
    if not n_harmful or not n_harmless:
        return None
    auroc = _auroc(np.asarray(predicted, dtype=np.float64), np.asarray(harmful, dtype=bool))
    # With a perfect record the formula gives no error at all, after however few: a half pair lost bounds it.
    held = min(auroc, 1 - 0.5 / (n_harmful * n_harmless))
    both_above = held / (2 - held)
    both_below = 2 * held**2 / (1 + held)
    variance = held * (1 - held)
    variance += (n_harmful - 1) * (both_above - held**2) + (n_harmless - 1) * (both_below - held**2)
    return Reliability(auroc, math.sqrt(max(0.0, variance) / (n_harmful * n_harmless)), n_harmful, n_harmless)


def _auroc(predicted_n: np.ndarray, harmful_n: np.ndarray) -> float:
    """Share of the pairs (harmful, harmless) that are ranked rightly; ties count half."""
    _values, at_n, counts = np.unique(predicted_n, return_inverse=True, return_counts=True)
    rank_of_value = np.cumsum(counts) - (counts - 1) / 2
    rank_n = rank_of_value[at_n]
    n_harmful = int(harmful_n.sum())
    n_harmless = len(harmful_n) - n_harmful
    above = rank_n[harmful_n].sum() - n_harmful * (n_harmful + 1) / 2
    return float(above / (n_harmful * n_harmless))
