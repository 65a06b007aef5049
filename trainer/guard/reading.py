"""A model and its probe, held ready: a prompt in, a risk out. One forward, without the model's head."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.errors import DataError
from shared.wire import ChatMessage
from trainer.guard.wire import GuardReading, GuardRequest, ReadBy, Timings
from trainer.probe.calibrate import threshold_for
from trainer.probe.reader import PromptReader, open_reader
from trainer.probe.run import open_probe
from trainer.probe.store import Probe, load_probe

DEFAULT_FPR = 0.01


@dataclass(frozen=True)
class Guard:
    reader: PromptReader
    probe: Probe
    target_fpr: float
    """Where a request names none."""

    def read(self, request: GuardRequest, queue_ms: float = 0.0) -> GuardReading:
        """
        Raises:
            DataError: the prompt is empty, too long, or no prompt.
            ConfigError: the probe has no threshold for the rate asked for.
            ModelError: a hidden state is not finite.
        """
        began = time.perf_counter()
        threshold = threshold_for(self.probe.card.thresholds, request.target_fpr or self.target_fpr)
        ids = self.reader.encode(messages_of(request))
        head = self.probe.head
        features_1KH = self.reader.features([ids], head.pooling, head.layers)
        logit = head.logits(features_1KH.cpu().numpy())
        risk, at = self.probe.calibration.probability(np.array([logit[0], threshold.logit]))
        card = self.probe.card
        return GuardReading(
            source=request.source,
            risk=float(risk),
            flagged=bool(logit[0] > threshold.logit),
            threshold=float(at),
            target_fpr=threshold.target_fpr,
            tokens=len(ids),
            probe=ReadBy(model=card.model, fingerprint=card.fingerprint[:12], head=card.head),
            timings=Timings(queue_ms=queue_ms, read_ms=1000 * (time.perf_counter() - began)),
        )


def messages_of(request: GuardRequest) -> list[ChatMessage]:
    """Raises DataError where it is no prompt that could be answered next."""
    if isinstance(request.input, str):
        return [ChatMessage(role="user", content=request.input)]
    if request.source != "prompt":
        raise DataError(f"a {request.source} is a text; give 'input' as a string")
    if request.input[-1].role != "user":
        raise DataError(
            f"the last turn is the {request.input[-1].role}'s; the guard reads what comes before the model"
            " speaks: end the conversation with the user's turn"
        )
    if not request.input[-1].content.strip():
        raise DataError("the prompt is empty: there is nothing to read")
    return list(request.input)


def open_guard(model: Path, probe_folder: Path, target_fpr: float = DEFAULT_FPR) -> Guard:
    """Loads both, and reads once, so that no request pays for what the first forward sets up.

    Raises:
        ConfigError, ModelError: no probe, no model, a probe of another model, or no such threshold.
    """
    probe = load_probe(probe_folder)  # before the model, which takes longer
    threshold_for(probe.card.thresholds, target_fpr)
    reader = open_reader(model)
    guard = Guard(reader, open_probe(probe_folder, model, reader), target_fpr)
    guard.read(GuardRequest(input="Hello"))
    return guard
