"""From logits to probabilities, and from a share of false alarms that is allowed to a threshold.

Both come from logits of rows that were held out, so that a fit's confidence in its own rows counts
nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from shared.errors import ConfigError
from trainer.probe.fit import Bools, sigmoid
from trainer.probe.head import Doubles

TARGETS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)


class Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Platt(Stored):
    """probability = sigmoid(slope * logit + offset)"""

    type: Literal["platt"] = "platt"
    slope: float
    offset: float

    def probability(self, logits_N: Doubles) -> Doubles:
        return sigmoid(self.slope * logits_N + self.offset)


class Isotonic(Stored):
    """Straight lines between knots, constant beyond them."""

    type: Literal["isotonic"] = "isotonic"
    logits: tuple[float, ...] = Field(min_length=1)
    probabilities: tuple[float, ...] = Field(min_length=1)

    def probability(self, logits_N: Doubles) -> Doubles:
        return np.asarray(np.interp(logits_N, self.logits, self.probabilities))


Calibration = Annotated[Platt | Isotonic, Field(discriminator="type")]
CalibrationKind = Literal["platt", "isotonic"]


class Threshold(Stored):
    """`logit > threshold` is flagged."""

    target_fpr: float
    logit: float
    fpr: float
    """What it came to on the held-out harmless rows; never above the target."""
    recall: float
    """Share of the held-out harmful rows that it flags."""


def calibrate(kind: CalibrationKind, logits_N: Doubles, harmful_N: Bools) -> Platt | Isotonic:
    return _platt(logits_N, harmful_N) if kind == "platt" else _isotonic(logits_N, harmful_N)


def _platt(logits_N: Doubles, harmful_N: Bools) -> Platt:
    """Platt (1999), with his targets (n+1)/(n+2) and 1/(n+2): classes that a probe separates wholly would
    else ask for an infinite slope."""
    yes, no = int(harmful_N.sum()), int((~harmful_N).sum())
    target_N = np.where(harmful_N, (yes + 1) / (yes + 2), 1 / (no + 2))
    # Each row twice, once a class, by the weight of its target.
    x = np.concatenate([logits_N, logits_N])[:, None]
    y = np.repeat([True, False], len(logits_N))
    model = LogisticRegression(C=1e6, max_iter=1000, tol=1e-8)
    model.fit(x, y, sample_weight=np.concatenate([target_N, 1 - target_N]))
    return Platt(slope=float(model.coef_[0, 0]), offset=float(model.intercept_[0]))


def _isotonic(logits_N: Doubles, harmful_N: Bools) -> Isotonic:
    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(logits_N, harmful_N)
    return Isotonic(logits=tuple(model.X_thresholds_), probabilities=tuple(model.y_thresholds_))


def thresholds(
    logits_N: Doubles, harmful_N: Bools, targets: Sequence[float] = TARGETS
) -> tuple[Threshold, ...]:
    """The lowest threshold that keeps each target on the harmless rows.

    A target finer than one row of them is left out: `n` rows cannot show a share below 1/n.
    """
    harmless = np.sort(logits_N[~harmful_N])[::-1]
    found = []
    for target in targets:
        allowed = int(np.floor(target * len(harmless) + 1e-9))
        if allowed < 1:
            continue
        # Whatever lies above the first one that must not be flagged.
        at = float(harmless[min(allowed, len(harmless) - 1)])
        found.append(
            Threshold(
                target_fpr=target,
                logit=at,
                fpr=float((harmless > at).mean()),
                recall=float((logits_N[harmful_N] > at).mean()),
            )
        )
    return tuple(found)


def threshold_for(table: Sequence[Threshold], target_fpr: float) -> Threshold:
    """Raises ConfigError naming the targets that there are."""
    for threshold in table:
        if abs(threshold.target_fpr - target_fpr) < 1e-9:
            return threshold
    known = ", ".join(f"{threshold.target_fpr:g}" for threshold in table)
    raise ConfigError(
        f"the probe has no threshold for a false-positive rate of {target_fpr:g}; it has {known}."
        " A finer one needs more harmless examples to fit on"
    )
