"""Keys come from files: an argument or a setting would show them in the list of processes."""

from __future__ import annotations

from pathlib import Path

from shared.errors import ConfigError


def read_secret(path: Path | None) -> str | None:
    """Raises ConfigError where the file is missing or empty: no key is not the same as an empty one."""
    if path is None:
        return None
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"the key file {str(path)!r} could not be read: {error}") from error
    if not secret:
        raise ConfigError(f"the key file {str(path)!r} is empty")
    return secret
