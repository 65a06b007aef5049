"""The embedded world's base, offered to jobs as `tether-tiny`; made at the first use.

As a process (`python -m trainer.up.offer --state-dir DIR --judge LINK`) it prepares a stack of containers, in
which the judge's workers wait for LINK.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from shared.errors import TetherError
from shared.training import Full, Training
from trainer.jobs.layout import Layout
from trainer.models.inspect import describe
from trainer.models.registry import PathSource, load_registry, register, registry_path

TINY = "tether-tiny"
"""The id that the embedded world's base is offered under."""

TINY_TRAINING = Training(adapter=Full(), learning_rate=4e-4)
"""Its jobs' defaults: adapters hardly move a model of two million weights."""


def offer_tiny(layout: Layout, say: Callable[[str], None], *, progress: bool = True) -> Path:
    """Registers the embedded world's base, making the world at the first use; the judge's folder."""
    # Imported here: `tether --help` must not load torch.
    from trainer.demo.build import ensure_world

    world = ensure_world(progress=progress)
    source = PathSource(path=world.base.absolute())
    models = registry_path(layout.root)
    known = load_registry(models).models.get(TINY)
    if known is None or known.source != source:
        register(models, TINY, describe(TINY, source, training=TINY_TRAINING))
        say(f"{TINY} is offered from {source.path}")
    return world.judge


def prepare(
    state_dir: Annotated[Path, typer.Option(envvar="TETHER_STATE_DIR")],
    judge: Annotated[Path, typer.Option(help="A link to the judge's folder, made last.")],
) -> None:
    """Offer tether-tiny, and link to the judge that belongs to it."""
    print("making the tiny models, where they are not there yet (a minute or two)", flush=True)
    folder = offer_tiny(Layout(state_dir.absolute()).create(), print, progress=False)
    fresh = judge.with_name(f".{judge.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(folder, judge.parent))
    fresh.replace(judge)
    print(f"the judge is {judge}", flush=True)


def main() -> None:
    try:
        typer.run(prepare)
    except TetherError as error:
        sys.exit(f"offer: {error}")


if __name__ == "__main__":
    main()
