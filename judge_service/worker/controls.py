"""Control pairs: (prompt, response) pairs whose harm is known, and what a judge's answers to them mean. Pure.

They see a judge that is wrong without failing: one that calls everything harmless, or everything harmful,
or gives the same number to every text.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from judge_service.backends.base import Grade, GradeFailure
from shared.errors import ConfigError
from shared.wire import ScoreKind

CONSTANT_AFTER = 64
"""So many answers over distinct texts with exactly equal probabilities are no judgements."""


class ControlPair(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(min_length=1)
    prompt: str
    response: str = Field(min_length=1)
    at_least: float = Field(default=0.0, ge=0, le=1)
    """A trusted judge's score is in [at_least, at_most]."""
    at_most: float = Field(default=1.0, ge=0, le=1)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    pair: tuple[ControlPair, ...]


@dataclass(frozen=True)
class Passed:
    """All that was answered is as it must be, and enough was."""


@dataclass(frozen=True)
class Missed:
    """The judge is wrong about what is known."""

    detail: str


@dataclass(frozen=True)
class Unanswered:
    """Too little was answered to say."""

    detail: str


Outcome = Passed | Missed | Unanswered


def load_controls(rubric: str, kind: ScoreKind, folder: Path | None = None) -> tuple[ControlPair, ...]:
    """The pairs for a rubric: `RUBRIC.toml` of the operator's folder, or the shipped one for this rubric.

    A classifier grades by no rubric and has pairs of its own; a rubric that has no file gets `default`.

    Raises:
        ConfigError: naming the file and what is wrong in it.
    """
    if folder is not None:
        if not folder.is_dir():
            raise ConfigError(f"controls: there is no folder {folder}")
        own = folder / f"{rubric}.toml"
        if own.is_file():
            return parse_controls(own.read_text(encoding="utf-8"), str(own))
    shipped = resources.files("judge_service.worker").joinpath("control_pairs")
    name = "classifier" if kind is ScoreKind.CLASSIFIER else rubric
    file = shipped.joinpath(f"{name}.toml")
    if not file.is_file():
        file = shipped.joinpath("default.toml")
    return parse_controls(file.read_text(encoding="utf-8"), file.name)


def parse_controls(text: str, source: str) -> tuple[ControlPair, ...]:
    """Raises ConfigError where the file is wrong, or some judge that always says the same would pass."""
    try:
        pairs = _File.model_validate(tomllib.loads(text)).pair
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"control pairs {source}: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise ConfigError(f"control pairs {source}: {wrong}") from None
    least, most = max((p.at_least for p in pairs), default=0.0), min((p.at_most for p in pairs), default=1.0)
    if least <= most:
        raise ConfigError(
            f"control pairs {source}: a judge that gives {least:g} to everything would pass; add a harmful"
            " pair with at_least and a harmless one with at_most, the first above the second"
        )
    return pairs


def check(pairs: Sequence[ControlPair], answers: Sequence[Grade | GradeFailure]) -> Outcome:
    """What the answers, in the order of the pairs, say of the judge.

    A judge may fail on a pair, as on any item. It has answered enough when it has on at least half of the
    harmful and half of the harmless ones.
    """
    missed = [
        f"{pair.name} ({answer.score:.3g}, not in {pair.at_least:g}..{pair.at_most:g})"
        for pair, answer in zip(pairs, answers, strict=True)
        if isinstance(answer, Grade) and not pair.at_least <= answer.score <= pair.at_most
    ]
    if missed:
        return Missed(f"missed {len(missed)} of {len(pairs)} control pairs: {', '.join(missed)}")
    for side in (True, False):
        of_side = [a for pair, a in zip(pairs, answers, strict=True) if (pair.at_least > 0) is side]
        failed = [answer for answer in of_side if isinstance(answer, GradeFailure)]
        if 2 * len(failed) > len(of_side):
            what = "harmful" if side else "harmless"
            return Unanswered(
                f"{len(failed)} of {len(of_side)} {what} control pairs were not answered: {failed[0].message}"
            )
    return Passed()


class ConstantStream:
    """Sees a judge that gives exactly the same probabilities to text after text.

    Only what has probabilities counts: where scores are few by nature (a classifier's, a rule's, a mean of
    samples), equal ones are common. A certain answer (one probability is exactly 1) is not counted either;
    the control pairs tell a judge that is sure from one that says the same to everything.
    """

    def __init__(self) -> None:
        self._last: tuple[float, ...] | None = None
        self._texts: set[int] = set()

    def note(self, text: str, answer: Grade | GradeFailure) -> None:
        if not isinstance(answer, Grade) or answer.empty or answer.probabilities is None:
            return
        if answer.probabilities != self._last:
            self._last = answer.probabilities
            self._texts.clear()
        if max(answer.probabilities) < 1 and len(self._texts) < CONSTANT_AFTER:
            self._texts.add(hash(text))

    def trouble(self) -> str | None:
        if len(self._texts) < CONSTANT_AFTER:
            return None
        return f"gave exactly the probabilities {self._last} to {CONSTANT_AFTER} different texts in a row"

    def reset(self) -> None:
        self._last = None
        self._texts.clear()
