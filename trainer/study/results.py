"""What one run came to, and how results are kept: a JSON file in the run's own folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from statistics import median

from pydantic import BaseModel, ConfigDict, ValidationError

RESULT_FILE = "result.json"


class Rates(BaseModel):
    """Shares in [0,1] on held-out prompts, by the world's exact rules."""

    model_config = ConfigDict(frozen=True)

    step: int
    asr: float
    task: float
    benign: float


class Result(BaseModel):
    model_config = ConfigDict(frozen=True)

    plan: str
    """Fingerprint of all that decided the run: another one is another run."""
    seed: int
    status: str
    """How the run ended; rates stand only where it has a model."""
    seconds: float
    along: tuple[Rates, ...]
    """At its checkpoints, the end last."""
    steps: tuple[int, ...]
    beta: tuple[float, ...]
    """Mean of each step's examples."""
    risk: tuple[float, ...]
    waited_s: float

    @property
    def end(self) -> Rates | None:
        return self.along[-1] if self.along else None

    @property
    def swing(self) -> float | None:
        """Greatest ASR less the smallest, over the run's second half."""
        late = self.along[len(self.along) // 2 :]
        return max(r.asr for r in late) - min(r.asr for r in late) if late else None


class Spread(BaseModel):
    """Over seeds."""

    model_config = ConfigDict(frozen=True)

    median: float
    low: float
    high: float


def spread(values: list[float]) -> Spread | None:
    """None where there is nothing."""
    if not values:
        return None
    return Spread(median=median(values), low=min(values), high=max(values))


def fingerprint(*parts: str) -> str:
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:16]


def read_result(directory: Path, plan: str) -> Result | None:
    """The result that `directory` holds of exactly this plan."""
    path = directory / RESULT_FILE
    if not path.exists():
        return None
    try:
        result = Result.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError:
        return None  # of another version of this file: the run is made again
    return result if result.plan == plan else None
