"""A probe on disk: `probe.safetensors` (the heads) and `probe.json` (what they are and belong to)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from shared.errors import ConfigError, ModelError
from trainer.probe.calibrate import Calibration, Isotonic, Platt, Stored, Threshold
from trainer.probe.features import Pooling
from trainer.probe.head import Head, Ints

CARD, TENSORS = "probe.json", "probe.safetensors"
FORMAT = 1


class HeadCard(Stored):
    pooling: Pooling
    layers: tuple[int, ...]
    strength: float
    """scikit-learn's C."""
    log_loss: float
    auroc: float
    """Both over held-out folds of the training rows."""
    bias: float


class Card(Stored):
    format: int = FORMAT
    model: str
    """The name of the model's folder: for people."""
    fingerprint: str
    template_hash: str
    hidden_size: int
    hidden_states: int
    """Of a forward: the embeddings' and one a block."""
    head: str
    """The one that was chosen, as `last/3` or `mean/all`."""
    heads: dict[str, HeadCard]
    data_hash: str
    """`trainer.probe.rows.data_hash` of the training rows."""
    datasets: tuple[str, ...]
    examples: int
    harmful: int
    folds: int
    seed: int
    calibration: Calibration
    thresholds: tuple[Threshold, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Probe:
    card: Card
    heads: dict[str, Head]
    trained_on: Ints
    """Sorted keys of the training prompts (`Labelled.key`), by which a test finds its own among them."""

    @property
    def head(self) -> Head:
        return self.heads[self.card.head]

    @property
    def calibration(self) -> Platt | Isotonic:
        return self.card.calibration

    def check_belongs(self, fingerprint: str, template_hash: str, model: Path) -> None:
        """Raises ModelError where it was fitted on another model or another chat template."""
        if fingerprint != self.card.fingerprint:
            raise ModelError(
                f"this probe was fitted on another model ({self.card.model!r}, fingerprint"
                f" {self.card.fingerprint[:12]}) than {model} ({fingerprint[:12]}): its directions mean"
                " nothing there. Fit one on this model: tether probe fit"
            )
        if template_hash != self.card.template_hash:
            raise ModelError(
                f"this probe was fitted with another chat template or vocabulary than {model} has"
                f" ({self.card.template_hash[:12]}, {template_hash[:12]}); fit it again: tether probe fit"
            )


def save_probe(folder: Path, card: Card, heads: Sequence[Head], trained_on: Ints) -> None:
    """Raises ConfigError where the folder cannot be written."""
    tensors: dict[str, np.ndarray] = {"trained_on": np.unique(trained_on)}
    for head in heads:
        tensors[f"{head.name}.weight"] = np.ascontiguousarray(head.weight_H)
        tensors[f"{head.name}.mean"] = np.ascontiguousarray(head.mean_KH)
        tensors[f"{head.name}.scale"] = np.ascontiguousarray(head.scale_KH)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The card last: a folder that has one is whole.
        (folder / CARD).unlink(missing_ok=True)
        save_file(tensors, folder / TENSORS)
        (folder / CARD).write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the probe cannot be written to {folder}: {error}") from error


def load_probe(folder: Path) -> Probe:
    """Raises ConfigError where the folder holds no probe, or a broken one."""
    try:
        card = Card.model_validate(json.loads((folder / CARD).read_text(encoding="utf-8")))
        tensors = load_file(folder / TENSORS)
        heads = {
            name: Head(
                about.pooling,
                about.layers,
                tensors[f"{name}.mean"],
                tensors[f"{name}.scale"],
                tensors[f"{name}.weight"],
                about.bias,
            )
            for name, about in card.heads.items()
        }
        trained_on = tensors["trained_on"]
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} holds no probe ({error.filename} is missing): tether probe fit"
        ) from error
    except (OSError, ValueError, SafetensorError, ValidationError) as error:
        raise ConfigError(f"the probe in {folder} cannot be read: {error}") from error
    except KeyError as error:
        raise ConfigError(f"the probe in {folder} is broken: it has no tensor {error}") from error
    if card.format != FORMAT or card.head not in heads:
        raise ConfigError(
            f"the probe in {folder} has format {card.format} and head {card.head!r}; format {FORMAT} and one"
            f" of {', '.join(heads)} are due"
        )
    return Probe(card, heads, trained_on)
