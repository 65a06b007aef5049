"""`tether models`: the registry of bases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from shared.errors import ConfigError
from trainer.models.inspect import describe
from trainer.models.registry import (
    BaseEntry,
    HfSource,
    PathSource,
    check_id,
    load_registry,
    register,
    registry_path,
)
from trainer.models.registry import remove as remove_entry

app = typer.Typer(help="Register the bases that jobs may tune.", no_args_is_help=True)

StateDir = Annotated[
    Path,
    typer.Option(
        envvar="TETHER_STATE_DIR", help="Where models.yaml lies, unless TETHER_MODELS names a file."
    ),
]
DEFAULT_STATE_DIR = Path("state")


@app.command()
def add(
    model_id: Annotated[str, typer.Argument(metavar="ID")],
    path: Annotated[Path | None, typer.Option(help="A transformers folder.")] = None,
    hf: Annotated[str | None, typer.Option(metavar="REPO", help="A repository of the hub.")] = None,
    revision: Annotated[str | None, typer.Option(metavar="SHA", help="Its commit.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens; else the config's.")] = None,
    lora_targets: Annotated[str | None, typer.Option(metavar="A,B", help="Else every linear module.")] = None,
    chat_template: Annotated[Path | None, typer.Option(help="A Jinja file; else the tokenizer's.")] = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Register a base, or replace the one of that id."""
    check_id(model_id)
    entry = describe(
        model_id,
        _source(path, hf, revision),
        context_length=context,
        lora_targets=None if lora_targets is None else [name.strip() for name in lora_targets.split(",")],
        chat_template=None if chat_template is None else _read(chat_template),
    )
    where = registry_path(state_dir)
    register(where, model_id, entry)
    print(
        f"{model_id}: context {entry.context_length} tokens, adapters on {', '.join(entry.lora_targets)};"
        f" registered in {where}"
    )


@app.command("list")
def list_models(state_dir: StateDir = DEFAULT_STATE_DIR) -> None:
    """Show the bases."""
    table = Table("id", "source", "context", "LoRA targets")
    for model_id, entry in sorted(load_registry(registry_path(state_dir)).models.items()):
        table.add_row(model_id, _shown(entry), str(entry.context_length), ", ".join(entry.lora_targets))
    Console().print(table)


@app.command()
def remove(
    model_id: Annotated[str, typer.Argument(metavar="ID")], state_dir: StateDir = DEFAULT_STATE_DIR
) -> None:
    """Take a base off the list. Its files stay."""
    remove_entry(registry_path(state_dir), model_id)
    print(f"{model_id} is no longer offered")


def _source(path: Path | None, hf: str | None, revision: str | None) -> PathSource | HfSource:
    if path is not None and hf is None and revision is None:
        return PathSource(path=path)
    if hf is not None and revision is not None and path is None:
        return HfSource(repo=hf, revision=revision)
    raise ConfigError("give either --path DIR, or --hf REPO with --revision SHA")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat-template {str(path)!r} could not be read: {error}") from error


def _shown(entry: BaseEntry) -> str:
    match entry.source:
        case PathSource(path=path):
            return str(path)
        case HfSource(repo=repo, revision=revision):
            return f"{repo}@{revision[:12]}"
