"""Who the ranks are, and the one exchange a step by which they agree."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from shared.errors import ConfigError
from shared.wire import FailureCode, ScoreKind
from trainer.safety.judge_client import Answer
from trainer.safety.ledger import Arrival, Failed, ItemKey, Scored, SourceName

GROUP_TIMEOUT_S = 1800.0
"""A rank that waits for the judge keeps exchanging, so no exchange lasts nearly as long. What does is
another rank's loading, or a rank that hangs: then the run dies, and starts again from its checkpoint."""

SLOTS = 256
"""Verdicts a rank can tell of in one exchange; what is over waits for the next."""

_SOURCES = tuple(SourceName)
_CODES = tuple(FailureCode)
_KINDS = (None, *ScoreKind)
_FIELDS = 8  # made_at, source, row, code (0 = scored), score, kind, queue_ms, judge_ms
_HEADER = 4  # now, signal, how many slots are filled, how many answers wait for the next exchange


class Signal(IntEnum):
    """What a rank has to tell the others beside verdicts; the gravest counts."""

    GO_ON = 0
    STOP = 1  # asked to: SIGTERM
    REFUSED = 2  # the judge refuses what we ask


@dataclass(frozen=True)
class World:
    rank: int
    ranks: int
    local_rank: int
    device: torch.device


@dataclass(frozen=True)
class Exchange:
    """What all ranks know after an exchange, the same on each."""

    now: float
    """Seconds, rank 0's clock."""
    signal: Signal
    answers: tuple[Answer, ...]
    more: bool = False
    """A rank has answers that did not fit: the next exchange brings them."""

    @property
    def arrivals(self) -> list[Arrival]:
        return [answer.arrival for answer in self.answers]


def world_from_environment() -> World:
    """Reads torchrun's variables, or SLURM's where torchrun's are absent.

    Raises:
        ConfigError: SLURM started several tasks but MASTER_ADDR is not set.
    """
    env = os.environ
    if "RANK" not in env and int(env.get("SLURM_NTASKS", "1")) > 1:
        if "MASTER_ADDR" not in env:
            raise ConfigError(
                "SLURM started several tasks but MASTER_ADDR is not set; in the job script:"
                " export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)"
            )
        env["RANK"] = env["SLURM_PROCID"]
        env["WORLD_SIZE"] = env["SLURM_NTASKS"]
        env["LOCAL_RANK"] = env["SLURM_LOCALID"]
        env.setdefault("MASTER_PORT", "29500")
    local_rank = int(env.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    return World(int(env.get("RANK", "0")), int(env.get("WORLD_SIZE", "1")), local_rank, device)


class Collective:
    """The control group: gloo on the CPU, whatever carries the gradients."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=GROUP_TIMEOUT_S))
        self._backlog: list[Answer] = []

    def exchange(self, answers: Sequence[Answer], *, now: float, signal: Signal) -> Exchange:
        """One all_gather of fixed shape. Every rank must call it equally often."""
        self._backlog.extend(answers)
        told, self._backlog = self._backlog[:SLOTS], self._backlog[SLOTS:]
        mine = np.zeros(_HEADER + SLOTS * _FIELDS)
        mine[:_HEADER] = now, signal, len(told), len(self._backlog)
        for slot, answer in enumerate(told):
            at = _HEADER + slot * _FIELDS
            mine[at : at + _FIELDS] = _encode(answer)
        everyone = [torch.empty(mine.shape[0], dtype=torch.float64) for _ in range(self.world.ranks)]
        dist.all_gather(everyone, torch.from_numpy(mine), group=self._group)
        gathered: list[Answer] = []
        for theirs in everyone:
            values = theirs.tolist()
            for slot in range(int(values[2])):
                at = _HEADER + slot * _FIELDS
                gathered.append(_decode(values[at : at + _FIELDS]))
        return Exchange(
            now=float(everyone[0][0]),
            signal=Signal(max(int(theirs[1]) for theirs in everyone)),
            answers=tuple(gathered),
            more=any(int(theirs[3]) for theirs in everyone),
        )

    def barrier(self) -> None:
        dist.barrier(group=self._group)

    def gather(self, mine: Tensor) -> list[Tensor]:
        """Every rank's, in order, on rank 0; nothing on the others. All of one shape, on the CPU."""
        if self.world.rank != 0:
            dist.gather(mine, None, dst=0, group=self._group)
            return []
        everyone = [torch.empty_like(mine) for _ in range(self.world.ranks)]
        dist.gather(mine, everyone, dst=0, group=self._group)
        return everyone

    def broadcast(self, values: Sequence[float]) -> list[float]:
        """Rank 0's. Every rank brings as many."""
        told = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(told, src=0, group=self._group)
        return list(told.tolist())

    def mean(self, values: Sequence[float]) -> list[float]:
        """Of each value over the ranks."""
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return [value / self.world.ranks for value in total.tolist()]


def _encode(answer: Answer) -> tuple[float, ...]:
    key, fate = answer.arrival
    code = 0 if isinstance(fate, Scored) else 1 + _CODES.index(fate.code)
    score, kind = (fate.score, _KINDS.index(fate.kind)) if isinstance(fate, Scored) else (0.0, 0)
    source = _SOURCES.index(key.source)
    return (key.made_at, source, key.row, code, score, kind, answer.queue_ms, answer.judge_ms)


def _decode(values: Sequence[float]) -> Answer:
    made_at, source, row, code, score, kind, queue_ms, judge_ms = values
    key = ItemKey(int(made_at), _SOURCES[int(source)], int(row))
    fate = Scored(score, _KINDS[int(kind)]) if code == 0 else Failed(_CODES[int(code) - 1])
    return Answer(Arrival(key, fate), queue_ms, judge_ms)
