"""What the controller decides of a step, and what it counts on the way. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Action(StrEnum):
    TRAIN = "train"
    PARK = "park"
    ABORT = "abort"


class Basis(StrEnum):
    """What an example's risk rests on."""

    OWN = "own"  # a verdict on the row itself
    AVERAGE = "average"  # the average over readings
    CLOSED = "closed"  # nothing may be trusted: beta_max
    PROBE = "probe"  # the probe as far as it is trusted, else the average: no verdict on the row
    HELD = "held"  # the last average although it is too old (overdue: hold)


@dataclass(frozen=True)
class Decision:
    """What step t does. `betas` and `bases` follow the order of the rows."""

    action: Action
    betas: tuple[float, ...]
    bases: tuple[Basis, ...]
    kept: tuple[bool, ...]
    """Whether a row trains; all do, unless the job drops what is flagged."""
    risk: float
    """The average over readings, in [0,1]; 1 before the first."""
    staleness: int
    """Steps."""
    overdue: bool
    """The bound is broken and the overdue policy acts."""
    unread: int
    """Rows of this step that train on no valid verdict at all."""


@dataclass
class Counts:
    """For the report; nothing is decided by them but `unread`."""

    late: int = 0
    """Verdicts that came after their reading had resolved; dropped."""
    duplicate: int = 0
    unknown: int = 0
    """Verdicts for something that was never asked in this run; dropped."""
    timeouts: int = 0
    other_kind: int = 0
    """Scores of another kind than the job's first; they count as failed."""
    withdrawn: int = 0
    """Scores that turned out `untrusted` before they were folded: never used."""
    withdrawn_late: int = 0
    """... after they were folded: the average has felt them, the rows are asked again."""
    failed: int = 0
    scored: int = 0
    trained: int = 0
    """Example-steps."""
    unread: int = 0
    """Example-steps trained without any valid verdict."""
    degraded_steps: int = 0
