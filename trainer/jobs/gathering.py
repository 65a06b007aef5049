"""How the machines of a run find one another: a note in the run's folder, which they share.

The first machine's launcher writes it when it starts a run on several, and takes it away when the run has
ended. The others (`node.py`) watch for it. Each start of a run has an id of its own, so that a machine
that comes back joins the newest and no other.
"""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import ConfigError

GATHERING = "gathering.json"
DEFAULT_PORT = 29400


class Gathering(BaseModel):
    """What torchrun must be told alike on every machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(default_factory=lambda: uuid4().hex)
    host: str
    """Of the first machine, as the others reach it."""
    port: int
    nnodes: int
    ranks_per_node: int

    def write(self, run_dir: Path) -> None:
        partial = run_dir / f".{GATHERING}"
        partial.write_text(self.model_dump_json(), encoding="utf-8")
        partial.replace(run_dir / GATHERING)


def read_gathering(run_dir: Path) -> Gathering | None:
    """None where the run is not gathering."""
    try:
        return Gathering.model_validate_json((run_dir / GATHERING).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ConfigError(f"{run_dir / GATHERING} is not what the runner writes: {error}") from error


def parse_endpoint(text: str) -> tuple[str, int]:
    """`HOST[:PORT]`. Raises ConfigError."""
    host, colon, port = text.rpartition(":") if ":" in text else (text, "", "")
    if not host or (colon and not port.isdecimal()):
        raise ConfigError(
            f"the rendezvous endpoint {text!r} is not HOST:PORT, such as 10.0.0.1:{DEFAULT_PORT}"
        )
    return host, int(port) if colon else DEFAULT_PORT
