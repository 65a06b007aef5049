"""A row's readings -> one. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from shared.jobs import Combine


def combine(rule: Combine, readings: Sequence[float]) -> float | None:
    """Readings in [0,1], one a source, in the order of the sources: a float sum depends on it. None where
    there is no reading: that nothing has looked is no number."""
    if not readings:
        return None
    match rule:
        case Combine.MAX:
            return max(readings)
        case Combine.MEAN:
            return sum(readings) / len(readings)
