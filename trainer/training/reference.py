"""The reference's last hidden states, on disk: computed once, used again every epoch.

Its frozen head is applied to them again at every use: H values a token where log-probabilities would
be V. They are taken from the policy before its first step, while it still is the reference, so that no
second model is needed at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from shared.errors import ConfigError
from trainer.training.data import Batch, Example, collate
from trainer.training.distributed import Collective
from trainer.training.objective import Features, SafeObjective

STATES = "states.bin"
WHOLE = "whole.json"
"""Written last: its presence says that every row is there."""


@dataclass(frozen=True)
class ReferenceStates:
    """Of every row of the training file, one after the other."""

    states_AH: Tensor
    """A: answer tokens of all rows. Mapped from the file, shared by the ranks of a host."""
    starts: tuple[int, ...]
    """Where each row begins; one more at the end."""

    def of(self, rows: Sequence[int]) -> Tensor:
        """[N, H], in the order in which `collate` puts the rows' answer tokens."""
        return torch.cat([self.states_AH[self.starts[row] : self.starts[row + 1]] for row in rows])


def compute_states(
    directory: Path,
    examples: Sequence[Example],
    objective: SafeObjective,
    collective: Collective,
    *,
    dtype: torch.dtype,
    micro_batch: int,
    pad_id: int,
    tell: Callable[[int, int], None],
    features: Features | None = None,
    read: Callable[[Sequence[Sequence[int]], Tensor], None] | None = None,
) -> ReferenceStates:
    """Finds them in `directory`, or computes them there; every rank calls it, before the first step.

    Args:
        objective: its policy must still be the reference: not trained, nothing loaded into it.
        tell: (rows done, rows), now and then.
        features: what else is read of the reference, in the same forward.
        read: given the rows of each rank in a round, and this rank's features of them [B, L, H]. Not called
            where all is found on disk; what it was given is then to be found there too.

    Raises:
        ConfigError: the disk has no room for them.
    """
    hidden = objective.hidden_size
    if hidden is None:
        raise ConfigError(
            "training.reference 'cache' needs a base whose logits are its last hidden states times one"
            " matrix; this one's are not: use 'adapters_off' or 'frozen_copy'"
        )
    starts = (0, *accumulate(example.answer_tokens for example in examples))
    described: dict[str, object] = {"tokens": starts[-1], "hidden": hidden, "dtype": str(dtype)}
    if features is not None:
        described["features"] = [list(features.layers), features.pooling]
    world = collective.world
    if not _is_whole(directory, described):
        if world.rank == 0:
            _make_room(directory, starts[-1] * hidden * dtype.itemsize)
        collective.barrier()
    states = ReferenceStates(_mapped(directory / STATES, starts[-1], hidden, dtype), starts)
    if _is_whole(directory, described):
        return states
    objective.eval()
    for turn, rows_of in enumerate(rounds(len(examples), micro_batch, world.ranks)):
        rows = rows_of[world.rank]
        batch = collate([examples[row] for row in rows], pad_id).to(world.device)
        ahead, read_BLH = objective.look(batch, features)
        if ahead.ref_hidden_NH is None:
            raise TypeError("the reference gave logits and no hidden states")
        for row, part in zip(
            rows, torch.split(ahead.ref_hidden_NH.cpu(), batch.count_B.tolist()), strict=True
        ):
            states.states_AH[starts[row] : starts[row + 1]] = part
        if read is not None and read_BLH is not None:
            read(rows_of, read_BLH)
        tell(min(len(examples), (turn + 1) * world.ranks * micro_batch), len(examples))
    collective.barrier()
    if world.rank == 0:
        (directory / WHOLE).write_text(json.dumps(described), encoding="utf-8")
    collective.barrier()
    return states


def rounds(n_rows: int, micro_batch: int, ranks: int) -> Iterator[list[list[int]]]:
    """Once through a file: the rows of each rank in each round. Past the end from the start again: under
    ZeRO-3 the ranks must take equally many forwards."""
    for first in range(0, n_rows, micro_batch * ranks):
        yield [
            [index % n_rows for index in range(first + rank * micro_batch, first + (rank + 1) * micro_batch)]
            for rank in range(ranks)
        ]


def with_states(batch: Batch, states: ReferenceStates, rows: Sequence[int]) -> Batch:
    return replace(batch, ref_hidden_NH=states.of(rows))


def _is_whole(directory: Path, described: dict[str, object]) -> bool:
    marker = directory / WHOLE
    return marker.exists() and json.loads(marker.read_text(encoding="utf-8")) == described


def _make_room(directory: Path, size: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / WHOLE).unlink(missing_ok=True)
    free = shutil.disk_usage(directory).free
    if size > free:
        raise ConfigError(
            f"training.reference 'cache' needs {size / 2**30:.1f} GiB below {directory.parent}, which has"
            f" {free / 2**30:.1f} GiB free; make room, or use 'frozen_copy' or, with LoRA, 'adapters_off'"
        )
    with (directory / STATES).open("wb") as file:
        file.truncate(size)


def _mapped(path: Path, tokens: int, hidden: int, dtype: torch.dtype) -> Tensor:
    flat = torch.from_file(str(path), shared=True, size=tokens * hidden, dtype=dtype)
    return flat.view(tokens, hidden)
