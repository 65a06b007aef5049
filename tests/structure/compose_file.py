"""docker-compose.yml as an engine sees it: parsed, its variables replaced."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
RAW = yaml.safe_load(TEXT)
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?:(:?-)([^}]*))?\}")


def compose(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Raises KeyError for a variable with neither a value nor a default."""
    found = _replaced(RAW, environment or {})
    assert isinstance(found, dict)
    return found


def services(*profiles: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Those that run under the profiles; every one has a profile."""
    every = compose(environment)["services"]
    return {name: service for name, service in every.items() if {*profiles} & {*service["profiles"]}}


def _replaced(value: Any, environment: Mapping[str, str]) -> Any:
    match value:
        case str():
            return VARIABLE.sub(lambda found: _value(found, environment), value)
        case dict():
            return {key: _replaced(inner, environment) for key, inner in value.items()}
        case list():
            return [_replaced(inner, environment) for inner in value]
        case _:
            return value


def _value(found: re.Match[str], environment: Mapping[str, str]) -> str:
    name, how, default = found.groups()
    value = environment.get(name)
    if value is None or (how == ":-" and not value):
        if how is None:
            raise KeyError(name)
        return default
    return value
