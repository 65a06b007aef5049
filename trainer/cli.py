"""The `tether` command. Each subcommand lives in its own room; nothing heavy is imported here."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points

import typer

from shared.errors import TetherError

GROUP = "tether.commands"
"""Entry-point group: name -> a typer.Typer. `judge_service` joins the command through it, since
`trainer` may not import it."""


def build_app() -> typer.Typer:
    app = typer.Typer(
        name="tether",
        help="Fine-tune language models without letting their safety go.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        command = entry.load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=entry.name)
        else:
            app.command(name=entry.name)(command)
    return app


def main() -> None:
    # Before torch is loaded, here or in a child: its threads must not spin on cores that others need.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        build_app()()
    except TetherError as error:
        print(f"tether: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
