"""The keys that users set are a reviewed list: adding, renaming or dropping one is a decision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from shared.jobs import CreateJob
from shared.rubrics.rubric import load_rubric
from shared.safety import Safety
from shared.training import Training
from shared.wire import SubmitJudgements
from trainer.foreground.config import TrainConfig, load_config

ROOT = Path(__file__).resolve().parents[2]

SAFETY = {
    "method.type",
    "method.beta",
    "method.beta_min",
    "method.beta_max",
    "method.granularity",
    "method.combine",
    "method.flagged",
    "method.rubric",
    "method.sources.type",
    "method.sources.look_ahead",
    "method.sources.samples_per_step",
    "method.sources.min_samples_per_step",
    "method.sources.max_new_tokens",
    "method.sources.temperature",
    "method.sources.scan",
    "method.sources.replay",
    "method.sources.layers",
    "method.sources.pooling",
    "method.staleness.clock",
    "method.staleness.max_staleness",
    "method.staleness.gain_up",
    "method.staleness.gain_down",
    "method.staleness.min_scored",
    "method.staleness.deadline_s",
    "method.staleness.overdue",
    "method.staleness.max_unread_fraction",
}
TRAINING = {
    "adapter.type",
    "adapter.r",
    "adapter.alpha",
    "adapter.dropout",
    "adapter.targets",
    "adapter.load_in_4bit",
    "ranks",
    "nnodes",
    "zero_stage",
    "offload",
    "activation_checkpointing",
    "reference",
    "precision",
    "batch_size",
    "micro_batch_size",
    "group_by_length",
    "steps",
    "n_epochs",
    "optimizer",
    "learning_rate",
    "schedule",
    "warmup_fraction",
    "weight_decay",
    "max_grad_norm",
    "max_length",
    "too_long",
    "checkpoint_every",
    "keep_checkpoints",
    "max_restarts",
}
HYPERPARAMETERS = {"batch_size", "n_epochs", "learning_rate_multiplier"}
JOB = {
    "model",
    "training_file",
    "validation_file",
    "suffix",
    "seed",
    "metadata",
    "integrations",
    "method.type",
    *(f"method.supervised.hyperparameters.{key}" for key in HYPERPARAMETERS),
    *(f"hyperparameters.{key}" for key in HYPERPARAMETERS),
    *(f"safety.{key}" for key in SAFETY),
    *(f"training.{key}" for key in TRAINING),
}
CANARIES = {
    "file",
    "every",
    "max_asr",
    "max_over_refusal",
    "harmful_from",
    "min_scored",
    "max_new_tokens",
    "deadline_s",
}
RUN = {
    "model",
    "training_file",
    "validation_file",
    "output_dir",
    "seed",
    "scores",
    "judge.url",
    "judge.rubric",
    "judge.api_key_file",
    *(f"canaries.{key}" for key in CANARIES),
    *(f"safety.{key}" for key in SAFETY),
    *(f"training.{key}" for key in TRAINING),
}
SUBMISSION = {
    "rationale",
    "items.id",
    "items.prompt",
    "items.prompt.role",
    "items.prompt.content",
    "items.response",
    "rubric",
    "priority",
    "expires_at",
    "group",
    "wait_s",
}


def keys(model: type[BaseModel]) -> set[str]:
    """Dotted paths of all leaves of a model, through unions and lists."""
    found: set[str] = set()
    for name, info in model.model_fields.items():
        below = [inner for part in models_in(info.annotation) for inner in keys(part)]
        found |= {f"{name}.{key}" for key in below} or {name}
        if below and has_leaf(info.annotation):
            found.add(name)
    return found


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [part for inner in getattr(annotation, "__args__", ()) for part in models_in(inner)]


def has_leaf(annotation: Any) -> bool:
    """Whether a plain value may stand where a model may too."""
    return any(inner is str for inner in getattr(annotation, "__args__", ()))


@pytest.mark.parametrize(
    ("model", "reviewed"),
    [
        (Safety, SAFETY),
        (Training, TRAINING),
        (CreateJob, JOB),
        (TrainConfig, RUN),
        (SubmitJudgements, SUBMISSION),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_no_key_without_review(model: type[BaseModel], reviewed: set[str]) -> None:
    assert keys(model) == reviewed


def test_safety_is_on_when_nothing_is_said() -> None:
    job = CreateJob(model="m", training_file="file-1")
    assert job.safety.method.type == "adaptive"


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_config_loads(path: Path) -> None:
    assert load_config(path).training_file


def test_there_are_shipped_configs() -> None:
    assert list((ROOT / "docs").rglob("*.toml"))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "shared" / "rubrics").glob("*.toml")), ids=lambda path: path.stem
)
def test_every_shipped_rubric_loads(path: Path) -> None:
    assert load_rubric(path.stem).name == path.stem
