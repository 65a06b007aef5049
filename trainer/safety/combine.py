"""A row's readings -> one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shared.safety import Combine


class Foretold(NamedTuple):
    """What the probe makes of a row."""

    score: float
    """Harm in [0,1]."""
    trust: float
    """[0,1]: as far as it counts. At 0 nothing is other than without a probe."""


def combine(rule: Combine, readings: Sequence[float], foretold: Foretold | None = None) -> float | None:
    """The judge's readings in [0,1], one a source, in the order of the sources: a float sum depends on it;
    and the probe's, as far as it counts. None where the judge has read nothing: that nothing has looked
    is no number, and the probe does not stand in for the judge."""
    if not readings:
        return None
    trust = 0.0 if foretold is None else foretold.trust
    score = 0.0 if foretold is None else foretold.score
    match rule:
        case Combine.MAX:
            return max(*readings, trust * score)
        case Combine.MEAN:
            return (sum(readings) + trust * score) / (len(readings) + trust)
