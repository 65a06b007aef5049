"""How old the judge's word was at each step, and where the time went. Decides nothing. Pure.

A verdict's way: the model says something (generate), the text waits for a worker (queue), the worker reads
it (judge), and the verdict waits until the controller may use it (fold).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainer.safety.controller import Controller
from trainer.safety.decision import Decision
from trainer.safety.ledger import ItemKey


@dataclass(frozen=True)
class Age:
    """Of what one step used. Seconds; the parts are means over the verdicts that came since the last step."""

    staleness_s: float | None = None
    """Since the newest reading in use was made; None where there is none."""
    queue_s: float | None = None
    judge_s: float | None = None
    fold_s: float | None = None


@dataclass
class _Mean:
    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


PARTS = ("queue_s", "judge_s", "fold_s")


@dataclass
class Seen:
    """A run's whole account. Every rank is told the same and keeps the same."""

    histogram: dict[int, int] = field(default_factory=dict)
    """Staleness in steps -> how many steps trained at it."""
    seconds: _Mean = field(default_factory=_Mean)
    longest_s: float = 0.0
    generate_s: float = 0.0
    """Rank 0's, of the whole run."""
    wait_s: float = 0.0
    degraded: int = 0
    """Steps that trained although the bound was broken."""
    parts: dict[str, _Mean] = field(default_factory=lambda: {part: _Mean() for part in PARTS})
    _opened: dict[int, float] = field(default_factory=dict)
    _arrived: dict[ItemKey, float] = field(default_factory=dict)
    _now: dict[str, _Mean] = field(default_factory=lambda: {part: _Mean() for part in PARTS})
    """Of the step under way."""

    def opened(self, made_at: int, now: float) -> None:
        self._opened[made_at] = now

    def answered(self, key: ItemKey, queue_s: float, judge_s: float, now: float) -> None:
        self._arrived.setdefault(key, now)
        self._add("queue_s", queue_s)
        self._add("judge_s", judge_s)

    def stepped(
        self, controller: Controller, decision: Decision, now: float, *, generate_s: float, wait_s: float
    ) -> Age:
        """After a step was decided: what the readings in use by now say of their age."""
        for key in [key for key in self._arrived if key.made_at <= controller.cursor]:
            self._add("fold_s", now - self._arrived.pop(key))
        made = self._opened.get(controller.frontier)
        self._opened = {u: at for u, at in self._opened.items() if u >= controller.frontier}
        age = Age(
            staleness_s=None if made is None else now - made,
            **{part: mean.value for part, mean in self._now.items()},
        )
        self._now = {part: _Mean() for part in PARTS}
        self.histogram[decision.staleness] = self.histogram.get(decision.staleness, 0) + 1
        self.degraded += decision.overdue
        self.generate_s += generate_s
        self.wait_s += wait_s
        if age.staleness_s is not None:
            self.seconds.add(age.staleness_s)
            self.longest_s = max(self.longest_s, age.staleness_s)
        return age

    def _add(self, part: str, value: float) -> None:
        self._now[part].add(value)
        self.parts[part].add(value)

    def report(self) -> dict[str, Any]:
        """For the event at the run's end."""
        steps = sum(self.histogram.values())
        return {
            "steps": steps,
            "histogram": {str(age): count for age, count in sorted(self.histogram.items())},
            "max": max(self.histogram, default=None),
            "mean_s": self.seconds.value,
            "max_s": self.longest_s,
            "degraded_share": self.degraded / steps if steps else 0.0,
            "generate_s": self.generate_s / steps if steps else 0.0,
            "wait_s": self.wait_s / steps if steps else 0.0,
            **{part: mean.value for part, mean in self.parts.items()},
        }

    def to_state(self) -> dict[str, Any]:
        return {
            "histogram": sorted(self.histogram.items()),
            "seconds": [self.seconds.total, self.seconds.count],
            "longest_s": self.longest_s,
            "generate_s": self.generate_s,
            "wait_s": self.wait_s,
            "degraded": self.degraded,
            "parts": {part: [mean.total, mean.count] for part, mean in self.parts.items()},
            "opened": sorted(self._opened.items()),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Seen:
        return cls(
            histogram=dict(state["histogram"]),
            seconds=_Mean(*state["seconds"]),
            longest_s=state["longest_s"],
            generate_s=state["generate_s"],
            wait_s=state["wait_s"],
            degraded=state["degraded"],
            parts={part: _Mean(*mean) for part, mean in state["parts"].items()},
            _opened=dict(state["opened"]),
        )
