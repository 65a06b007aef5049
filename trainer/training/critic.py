"""The probe in a run: every rank reads the reference at its rows' prompts, rank 0 holds the teacher, and all
hear the same scores."""

from __future__ import annotations

import base64
import hashlib
import math
import shutil
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from shared.errors import ConfigError, DataError, ModelError, TrainingError
from shared.safety import ProbeSource
from trainer.safety.combine import Foretold
from trainer.safety.probe.features import FeatureTable
from trainer.safety.probe.fit import FOLDS
from trainer.safety.probe.lessons import Taught
from trainer.safety.probe.teacher import NotEnough, Teacher
from trainer.safety.probe.trust import Standing
from trainer.training.data import Batch, Example, collate, collate_prompts
from trainer.training.distributed import Collective
from trainer.training.engine import Engine
from trainer.training.objective import Features
from trainer.training.order import micro_batch_size, micro_shares
from trainer.training.reference import rounds

FEATURES = "features.f32"


class Said(IntEnum):
    """What rank 0 tells the others of a step."""

    NOTHING_YET = 0  # too few verdicts of one class
    OPINION = 1
    BROKEN = 2  # a row's hidden states are not finite


class Critic:
    """One rank's part of it.

    Args:
        directory: of what is kept of the reference during the run.
        layers: of the model, the embeddings not counted.
        width: hidden size.

    Raises:
        ConfigError: a layer that the model has not; no room on the disk.
        DataError: a row without a prompt.
    """

    def __init__(
        self,
        source: ProbeSource,
        *,
        engine: Engine,
        examples: Sequence[Example],
        collective: Collective,
        directory: Path,
        pad_id: int,
        layers: int,
        width: int,
    ) -> None:
        self.scans = source.scan
        self._directory = directory
        self.features = Features(chosen_layers(source.layers, layers), source.pooling)
        self._engine = engine
        self._examples = examples
        self._collective = collective
        self._pad_id = pad_id
        self._micro = micro_batch_size(engine.training, collective.world.ranks)
        self._width = width * len(self.features.layers)
        self.known_R = np.zeros(len(examples), dtype=bool)
        """Rows whose features rank 0 has; the same on every rank."""
        self.ahead: list[Batch] | None = None
        """The step's micro-batches with the reference's states, where those were needed before it."""
        self.standing = Standing()
        self._teacher: Teacher | None = None
        folds = [fold_of(example) for example in examples]
        if collective.world.rank == 0:
            _require_room(directory, len(examples) * self._width * 4)
            table = FeatureTable.in_file(directory / FEATURES, len(examples), self._width)
            self._teacher = Teacher(table, folds, source.replay)

    # --- reading ---------------------------------------------------------------------------

    def look(self, rows: Sequence[int]) -> None:
        """Before a step's betas are decided. Where a row is seen for the first time, the reference's forward
        that the step needs anyway is taken now."""
        self.ahead = None
        if self.known_R[list(rows)].all():
            return
        world = self._collective.world
        chosen_of = [micro_shares(len(rows), rank, world.ranks, self._micro) for rank in range(world.ranks)]
        self.ahead = []
        for turn, chosen in enumerate(chosen_of[world.rank]):
            batch = collate([self._examples[rows[at]] for at in chosen], self._pad_id)
            ((ahead, read_BLH),) = self._engine.look([batch], self.features)
            if read_BLH is None:
                raise TypeError("the reference was read without features")
            self.ahead.append(ahead)
            self.put([[rows[at] for at in of_rank[turn]] for of_rank in chosen_of], read_BLH)

    def put(self, rows_of: Sequence[Sequence[int]], read_BLH: Tensor) -> None:
        """Takes this rank's features of its rows to rank 0. Every rank calls it, each with as many rows."""
        parts = self._collective.gather(read_BLH.flatten(1).cpu())
        for rows, part_BD in zip(rows_of, parts, strict=False):
            if self._teacher is not None:
                self._teacher.features.put(rows, part_BD.numpy())
        for rows in rows_of:
            self.known_R[list(rows)] = True

    def read_file(self, tell: Callable[[int, int], None]) -> None:
        """The prompts of the whole file, where they are not all known: a forward of the reference a row."""
        if self.known_R.all():
            return
        world = self._collective.world
        self._engine.objective.eval()
        done = 0
        for rows_of in rounds(len(self._examples), self._micro, world.ranks):
            batch = collate_prompts([self._examples[row] for row in rows_of[world.rank]], self._pad_id)
            ((_, read_BLH),) = self._engine.look([batch], self.features)
            if read_BLH is None:
                raise TypeError("the reference was read without features")
            self.put(rows_of, read_BLH)
            done = min(len(self._examples), done + sum(map(len, rows_of)))
            tell(done, len(self._examples))

    def all_are_known(self) -> None:
        """What the features' file holds was read in a pass that was brought to its end."""
        self.known_R[:] = True
        if self._teacher is not None:
            self._teacher.features.known_R[:] = True

    # --- speaking --------------------------------------------------------------------------

    def foretell(self, taught: Sequence[Taught], rows: Sequence[int]) -> list[Foretold] | None:
        """After `look`: what the probe makes of the rows, the same on every rank. None while the judge has
        not said enough.

        Raises:
            ModelError: the reference's hidden states of a row are not finite; on every rank.
        """
        told = np.zeros(4 + len(rows))
        if self._teacher is not None:
            self._teacher.learn(taught)
            told[:] = _speak(self._teacher, rows)
        said, row, trust, auroc, *scores = self._collective.broadcast(told.tolist())
        if said == Said.BROKEN:
            raise ModelError(
                f"the reference's hidden states at the prompt of line {self._examples[int(row)].row.line} are"
                " not finite (NaN or infinite): the base is broken, or training.precision too low; try fp32"
            )
        self.standing = Standing()
        if said == Said.NOTHING_YET:
            return None
        self.standing = Standing(trust, None if math.isnan(auroc) else auroc)
        return [Foretold(score, trust) for score in scores]

    # --- checkpoint ------------------------------------------------------------------------

    def state(self, taught: Sequence[Taught]) -> dict[str, Any]:
        """`taught`: what has come since the step was decided."""
        if self._teacher is None:
            return {"known": base64.b64encode(np.packbits(self.known_R).tobytes()).decode(), "teacher": None}
        self._teacher.learn(taught)
        self._teacher.features.flush()
        return {"known": None, "teacher": self._teacher.to_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises TrainingError on every rank where the features' file is gone, or cut short: zeros in its
        place would be believed."""
        whole = self._teacher is not None and self._teacher.features.was_whole
        if not self._collective.broadcast([float(whole)])[0]:
            raise TrainingError(
                f"{self._directory / FEATURES}, to which the checkpoint belongs, is gone or cut short; put it"
                " back, or start the run anew in an empty folder"
            )
        if self._teacher is None:
            packed = np.frombuffer(base64.b64decode(state["known"]), dtype=np.uint8)
            self.known_R = np.unpackbits(packed, count=len(self.known_R)).astype(bool)
            return
        self._teacher.restore(state["teacher"])
        self.known_R = self._teacher.features.known_R.copy()


def _speak(teacher: Teacher, rows: Sequence[int]) -> np.ndarray:
    told = np.zeros(4 + len(rows))
    if teacher.features.broken is not None:
        told[:2] = Said.BROKEN, teacher.features.broken
        return told
    opinion = teacher.opinion(rows)
    if isinstance(opinion, NotEnough):
        return told
    auroc = math.nan if opinion.reliability is None else opinion.reliability.auroc
    told[:] = Said.OPINION, 0, opinion.trust, auroc, *opinion.scores
    return told


def chosen_layers(asked: Sequence[int] | None, layers: int) -> tuple[int, ...]:
    """Raises ConfigError for one that a model of so many layers has not."""
    if asked is None:
        return tuple(sorted({max(1, round(layers * part / 4)) for part in (1, 2, 3, 4)}))
    unknown = [layer for layer in asked if layer > layers]
    if unknown:
        raise ConfigError(
            f"probe.layers names {', '.join(map(str, unknown))}; the base has the layers 0 (embeddings) to"
            f" {layers}"
        )
    return tuple(sorted(set(asked)))


def fold_of(example: Example) -> int:
    """By the prompt: of two rows with the same one, neither may vouch for the other.

    Raises:
        DataError: the row has no prompt.
    """
    if example.prompt_length == 0:
        raise DataError(
            "the row has nothing before its last answer, so that the source 'probe' has nothing to read; give"
            " it a user's turn, or leave 'probe' out",
            line=example.row.line,
        )
    # The tokens that are read: a chat whose end was cut off is read at an earlier turn.
    prompt = ",".join(map(str, example.ids[: example.prompt_length]))
    return int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16) % FOLDS


def _require_room(directory: Path, size: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if size > free:
        raise ConfigError(
            f"the source 'probe' keeps {size / 2**30:.1f} GiB of features below {directory.parent}, which has"
            f" {free / 2**30:.1f} GiB free; make room, or name fewer probe.layers"
        )
