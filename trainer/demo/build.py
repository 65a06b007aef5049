"""Builds the embedded world once and keeps it: tokenizer, aligned base, small judge."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import queue
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from filelock import FileLock
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from transformers import PreTrainedTokenizerFast

from shared.errors import ServiceError
from shared.rubrics.rubric import load_rubric
from trainer.demo import pretrain
from trainer.demo.tokenizer import train_tokenizer
from trainer.demo.world import RUBRIC, training_text

SOURCES = ("lexicon", "prose", "world", "graded", "tokenizer", "pretrain", "build")
"""Modules of this package that decide what is built."""

Report = Callable[[str, float], None]
"""Told a stage's name and the share of it that is done."""


@dataclass(frozen=True)
class WorldPaths:
    """Folders in transformers' own form. `base` and `judge` each hold the tokenizer too."""

    root: Path
    base: Path
    judge: Path
    tokenizer: Path


def cache_folder() -> Path:
    """`TETHER_CACHE`, else `tether` in the user's cache folder."""
    if own := os.environ.get("TETHER_CACHE"):
        return Path(own).expanduser()
    shared_cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared_cache) if shared_cache else Path.home() / ".cache") / "tether"


def world_name(settings: pretrain.Settings) -> str:
    """Changes with whatever decides what is built: source, settings, the rubric."""
    digest = hashlib.sha256()
    for module in SOURCES:
        digest.update(resources.files("trainer.demo").joinpath(f"{module}.py").read_bytes())
    digest.update(repr(settings).encode())
    digest.update(load_rubric(RUBRIC).hash.encode())
    return f"world-{digest.hexdigest()[:16]}"


def ensure_world(*, progress: bool = True, settings: pretrain.Settings | None = None) -> WorldPaths:
    """The world's folders, built first where they are not yet there (about a minute on two cores).

    Several may call it at once: one builds, the others wait. Interrupted, it leaves nothing behind.
    """
    settings = settings or pretrain.Settings()
    root = cache_folder() / world_name(settings)
    paths = WorldPaths(root, root / "base", root / "judge", root / "tokenizer")
    # Renamed into place when whole: a folder that is there is complete.
    if root.exists():
        return paths
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_suffix(".lock")):
        if not root.exists():
            _remove_abandoned(root)
            _build_beside(root, settings, progress)
    return paths


def _remove_abandoned(root: Path) -> None:
    """What a builder that was killed left. Only the lock's holder may: nobody else builds this world."""
    for folder in root.parent.glob(f".{root.name}-*"):
        shutil.rmtree(folder)


def _build_beside(root: Path, settings: pretrain.Settings, progress: bool) -> None:
    unfinished = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        with _reporting(progress) as report:
            build(unfinished, settings, report)
        # mkdtemp's folder is its owner's alone; a shared cache is not.
        unfinished.chmod(0o755)
        unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def build(folder: Path, settings: pretrain.Settings, report: Report) -> None:
    """Trains everything and writes it under `folder`: base and judge side by side, a process of one
    thread each, so that what comes out does not depend on the number of cores.

    Raises:
        ServiceError: one of the two processes died.
    """
    tokenizer = train_tokenizer(training_text(settings.seed))
    tokenizer.save_pretrained(folder / "tokenizer")
    context = multiprocessing.get_context("spawn")
    told: multiprocessing.Queue[tuple[str, float]] = context.Queue()
    parts = {
        name: context.Process(target=_build_part, args=(name, folder, settings, told), daemon=True)
        for name in TRAINERS
    }
    for part in parts.values():
        part.start()
    try:
        while any(part.is_alive() for part in parts.values()):
            with contextlib.suppress(queue.Empty):
                report(*told.get(timeout=0.2))
        for name, part in parts.items():
            if part.exitcode != 0:
                raise ServiceError(f"training the {name} of the embedded world ended with {part.exitcode}")
            report(name, 1.0)
    finally:
        for part in parts.values():
            part.terminate()
            part.join()


TRAINERS = {"base": pretrain.train_base, "judge": pretrain.train_judge}


def _build_part(
    name: str, folder: Path, settings: pretrain.Settings, told: multiprocessing.Queue[tuple[str, float]]
) -> None:
    """In a process of its own."""
    # Ctrl-C reaches the whole group; the parent ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    model = TRAINERS[name](tokenizer, settings, lambda done: told.put((name, done)))
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)


@contextmanager
def _reporting(shown: bool) -> Iterator[Report]:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        disable=not shown,
    )
    with bar:
        stages = {
            "base": bar.add_task("training tether-tiny", total=1.0),
            "judge": bar.add_task("training the small judge", total=1.0),
        }
        yield lambda stage, done: bar.update(stages[stage], completed=done)


if __name__ == "__main__":
    print(ensure_world().root)
