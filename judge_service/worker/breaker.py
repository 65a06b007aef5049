"""The circuit breaker of a worker: whether its judge may be given work. Pure; guard.py moves it.

While it is not closed, the worker takes nothing, and what it held went back uncounted: an outage of the
backend must not spend the deliveries of items that have done nothing wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from judge_service.backends.base import Grade, GradeFailure
from shared.wire import FailureCode

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
"""Between probes; doubled in between."""


class Reason(StrEnum):
    STARTING = "starting"  # the control pairs have not been answered yet
    BACKEND_UNAVAILABLE = "backend_unavailable"  # it is away as a whole
    BACKEND_FAILING = "backend_failing"  # it is there, and hardly anything comes of it
    JUDGE_UNTRUSTED = "judge_untrusted"  # it answers, and the answers cannot be right


@dataclass(frozen=True)
class Closed:
    """Work is taken."""

    since: float
    """Unix seconds, as in the others."""


@dataclass(frozen=True)
class Open:
    """No work is taken; after a pause the control pairs are asked again."""

    reason: Reason
    detail: str
    """For people: what happened, with which value. Never holds graded text."""
    since: float
    probes: int = 0
    """Those that have failed."""


@dataclass(frozen=True)
class HalfOpen:
    """The control pairs are with the backend."""

    was: Open


State = Closed | Open | HalfOpen


def opened(state: State, reason: Reason, detail: str, now: float) -> Open:
    """What was open stays so since then, with the newest reason. Distrust is not hidden by an outage."""
    match state:
        case Closed():
            return Open(reason, detail, now)
        case HalfOpen(was) | (Open() as was):
            if was.reason is Reason.JUDGE_UNTRUSTED and reason is not Reason.JUDGE_UNTRUSTED:
                return was
            return replace(was, reason=reason, detail=detail)


def probing(state: State) -> State:
    return HalfOpen(state) if isinstance(state, Open) else state


def probe_failed(state: State, reason: Reason, detail: str, now: float) -> Open:
    still = opened(state, reason, detail, now)
    return replace(still, probes=still.probes + 1)


def probe_passed(state: State, now: float) -> Closed:
    return state if isinstance(state, Closed) else Closed(now)


def pause_s(probes: int) -> float:
    """Seconds until the next probe, after so many that failed."""
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(probes, 30)))


def describe(state: State) -> dict[str, object]:
    """As readiness and `tether judge status` show it."""
    match state:
        case Closed(since):
            return {"state": "closed", "reason": None, "detail": None, "since": since, "probes": 0}
        case Open(reason, detail, since, probes):
            name = "open"
        case HalfOpen(Open(reason, detail, since, probes)):
            name = "half_open"
    return {"state": name, "reason": reason.value, "detail": detail, "since": since, "probes": probes}


class ErrorRate:
    """Counts what comes of the last items; `trouble` says when it is next to nothing.

    A single item that a judge cannot grade is that item's matter. When at least `LEAST` of the last
    `WINDOW` answers are in and `SHARE` of them are failures of the judge's, it is the judge's; or when
    `BATCHES` whole batches in a row failed.
    """

    WINDOW, LEAST, SHARE, BATCHES = 64, 32, 0.8, 3
    JUDGES_FAULT = frozenset(
        {FailureCode.SERVER_ERROR, FailureCode.TIMEOUT, FailureCode.OVERLOADED, FailureCode.PARSE_ERROR}
    )

    def __init__(self) -> None:
        self._failed: deque[bool] = deque(maxlen=self.WINDOW)
        self._batches = 0

    def note(self, answers: Iterable[Grade | GradeFailure], *, whole_batch_failed: bool = False) -> None:
        for answer in answers:
            self._failed.append(isinstance(answer, GradeFailure) and answer.code in self.JUDGES_FAULT)
        self._batches = self._batches + 1 if whole_batch_failed else 0

    def trouble(self) -> str | None:
        if self._batches >= self.BATCHES:
            return f"the last {self._batches} batches failed whole"
        failed, seen = sum(self._failed), len(self._failed)
        if seen >= self.LEAST and failed >= self.SHARE * seen:
            return f"{failed} of the last {seen} answers were failures of the judge"
        return None

    def reset(self) -> None:
        self._failed.clear()
        self._batches = 0
