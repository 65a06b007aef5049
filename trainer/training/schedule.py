"""The learning rate as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from shared.training import Training


def learning_rate(training: Training, step: int, steps: int) -> float:
    """Of optimizer step `step` (from 0) of `steps`. Linear warm-up, then the schedule down to 0."""
    warmup = round(training.warmup_fraction * steps)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    match training.schedule:
        case "constant":
            scale = 1.0
        case "linear":
            scale = 1.0 - progress
        case "cosine":
            scale = 0.5 * (1 + math.cos(math.pi * progress))
    return training.learning_rate * scale
