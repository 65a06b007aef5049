"""Which bases may be tuned: `models.yaml`, written by `tether models` and read by API and runner.

models:
  my-base:
    source: {type: hf, repo: org/name, revision: 0123...}     # or {type: path, path: /models/name}
    context_length: 4096
    lora_targets: [q_proj, v_proj]
    training: {learning_rate: 0.0001}                         # defaults of its jobs, optional
    created: 1760000000
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from shared.errors import ConfigError, ModelError
from shared.settings import Settings
from shared.training import Training

MODELS_ENV = "TETHER_MODELS"
ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
MAX_ID = 128


class PathSource(Settings):
    """A transformers folder on this machine."""

    type: Literal["path"] = "path"
    path: Path


class HfSource(Settings):
    """A repository of the Hugging Face hub at one commit; HF_HOME, HF_TOKEN, HF_HUB_OFFLINE apply."""

    type: Literal["hf"] = "hf"
    repo: str
    revision: str
    """The commit, since a branch moves and the reference must not."""


class BaseEntry(Settings):
    source: Annotated[PathSource | HfSource, Field(discriminator="type")]
    context_length: int = Field(gt=0)
    """Tokens."""
    lora_targets: tuple[str, ...] = Field(min_length=1)
    """Names of the modules that adapters go on, where a job does not say."""
    chat_template: str | None = None
    """Jinja; None: the tokenizer's own."""
    training: Training = Training()
    """Defaults of this base's jobs: the fields that are set here count, the others are the schema's."""
    created: int = 0
    """Unix seconds."""


class Registry(Settings):
    models: dict[str, BaseEntry] = Field(default_factory=dict)

    def get(self, model_id: str) -> BaseEntry:
        """Raises ModelError naming the command that registers a base."""
        entry = self.models.get(model_id)
        if entry is None:
            raise unknown_model(model_id, self.models)
        return entry


def unknown_model(model_id: str, known: Mapping[str, BaseEntry]) -> ModelError:
    shown = model_id if len(model_id) <= 80 else model_id[:77] + "..."
    name = model_id if is_id(model_id) else "ID"
    return ModelError(
        f"no base is registered as {shown!r} (there are: {', '.join(sorted(known)) or 'none'});"
        f" register one with: tether models add {name} --path DIR"
    )


def is_id(model_id: str) -> bool:
    return len(model_id) <= MAX_ID and ID_PATTERN.fullmatch(model_id) is not None


def check_id(model_id: str) -> None:
    if not is_id(model_id):
        raise ModelError(
            f"{model_id[:80]!r} cannot be a model's id: letters, digits, '.', '_' and '-', at most one '/',"
            f" beginning with a letter or digit, {MAX_ID} characters at most"
        )


def registry_path(state_dir: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """TETHER_MODELS, else `models.yaml` in the state directory."""
    named = environment.get(MODELS_ENV)
    return Path(named) if named else state_dir / "models.yaml"


def load_registry(path: Path) -> Registry:
    """An absent file is an empty registry. Raises ConfigError naming the field that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Registry()
    try:
        value = yaml.safe_load(text)
        registry = Registry.model_validate(value if value is not None else {})
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg']}") from error
    for model_id in registry.models:
        check_id(model_id)
    return registry


def change_registry(path: Path, change: Callable[[dict[str, BaseEntry]], None]) -> None:
    """Read, change, write; one process at a time, and a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        models = dict(load_registry(path).models)
        change(models)
        written = {"models": {model_id: _written(entry) for model_id, entry in models.items()}}
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(yaml.safe_dump(written, sort_keys=True, allow_unicode=True), encoding="utf-8")
        fresh.replace(path)


def _written(entry: BaseEntry) -> dict[str, Any]:
    """Without what was left out, so that a later default still applies to it."""
    whole = entry.model_dump(mode="json", exclude_none=True)
    training = {
        name: value
        for name, value in whole.pop("training").items()
        if name in entry.training.model_fields_set
    }
    return {**whole, "training": training} if training else whole


def register(path: Path, model_id: str, entry: BaseEntry) -> None:
    """Adds the base, or replaces what had its id."""
    check_id(model_id)
    change_registry(path, lambda models: models.update({model_id: entry}))


def remove(path: Path, model_id: str) -> None:
    def drop(models: dict[str, BaseEntry]) -> None:
        if models.pop(model_id, None) is None:
            raise unknown_model(model_id, models)

    change_registry(path, drop)
