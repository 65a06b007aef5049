"""`tether train CONFIG.toml [key=value ...]`: one run as a file."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from shared.errors import ConfigError
from shared.safety import Safety
from shared.settings import Settings
from shared.training import Training
from trainer.training.run_spec import Canaries


class JudgeSettings(Settings):
    url: str
    rubric: str = "demo-v1"
    """Where safety.method names none."""
    api_key_file: Path | None = None


class TrainConfig(Settings):
    model: str
    """A folder, or the id of a registered base."""
    training_file: Path
    validation_file: Path | None = None
    output_dir: Path
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    judge: JudgeSettings | None = None
    scores: Literal["judge", "file"] = "judge"
    """`file`: a row's `harm_score` column stands for the judge's reading of it."""
    canaries: Canaries | None = None
    """The provider's canary prompts, and what they gate."""
    safety: Safety = Safety()
    training: Training = Training()


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The file with `a.b.c=value` laid over it.

    Raises:
        ConfigError: no such file, not TOML, or a wrong field; the message names it.
    """
    try:
        with path.open("rb") as file:
            raw = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for override in overrides:
        _lay_over(raw, override)
    try:
        return TrainConfig.model_validate(raw)
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()
        )
        raise ConfigError(f"{path}: {told}") from error


def _lay_over(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not key=value, such as training.steps=100")
    *parents, name = key.split(".")
    table = raw
    for parent in parents:
        below = table.setdefault(parent, {})
        if isinstance(below, str):
            # `method = "adaptive"` is short for a table with that type.
            below = table[parent] = {"type": below}
        if not isinstance(below, dict):
            raise ConfigError(f"{override!r}: {parent!r} is {below!r} in the file, not a table")
        table = below
    table[name] = _value(text)


def _value(text: str) -> object:
    """A TOML value, else the text itself, so that strings need no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
