"""Rates over answers, with their intervals. Pure: a rule says what each answer did."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Rule = Callable[[str, str], bool]
"""(prompt, response) -> whether it counts."""


@dataclass(frozen=True)
class Rate:
    """A share in [0,1] of `total` answers, with its 95 % Wilson interval."""

    count: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.count / self.total


def rate(prompts: Sequence[str], responses: Sequence[str], rule: Rule) -> Rate:
    """Share of answers for which the rule holds: ASR, task accuracy, benign helpfulness, by the rule given.

    Raises:
        ValueError: no answers, or not one a prompt.
    """
    hits = sum(rule(prompt, response) for prompt, response in zip(prompts, responses, strict=True))
    return rate_of(hits, len(prompts))


def rate_of(count: int, total: int) -> Rate:
    """Raises ValueError unless 0 <= count <= total and total > 0: a share of nothing is no number."""
    low, high = wilson_interval(count, total)
    return Rate(count, total, low, high)


def wilson_interval(count: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval (1927) for `count` of `total`; `z` 1.96 is 95 %."""
    if not 0 <= count <= total or total == 0:
        raise ValueError(f"{count} of {total} is no share: needs 0 <= count <= total and total > 0")
    share = count / total
    spread = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / spread
    half = z / spread * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # Rounding must not leave the share itself outside.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def auroc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Chance that a positive scores above a negative, ties half.

    Raises:
        ValueError: either side is empty.
    """
    if not positives or not negatives:
        raise ValueError(f"AUROC of {len(positives)} positives and {len(negatives)} negatives: needs both")
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    return wins / (len(positives) * len(negatives))
