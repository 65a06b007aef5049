"""How long judging takes lately: what would come too late is not begun, and a fast judge need not wait."""

from __future__ import annotations

from collections import deque

REMEMBERED = 9
"""Batches. All but the slowest of them count, so that one hiccup does not."""

SAFETY = 1.2
"""A batch may take a little longer than the last ones, and is taken a little before it is judged."""

LINGER_SHARE = 0.1
"""Of what a batch takes: waiting for a fuller one is worth so much."""

LEAST_LINGER_S = 0.001
"""Less is not worth another look at the queue: the next batch has the rest."""


class Pace:
    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)

    def took(self, seconds: float) -> None:
        """A batch took so long from when it was taken to when its verdicts were stored."""
        self._seconds.append(seconds)

    def nothing_left(self) -> None:
        """All that was there would have come too late. The judge may be faster by now: try the next."""
        self._seconds.clear()

    @property
    def needs_s(self) -> float:
        """What is due within so many seconds would come too late; 0 while nothing is known."""
        return sorted(self._seconds)[-2:][0] * SAFETY if self._seconds else 0.0

    def linger_s(self, longest_s: float) -> float:
        """How long to wait for a batch to become fuller; 0: not at all."""
        if not self._seconds:
            return longest_s
        worth_s = LINGER_SHARE * self.needs_s
        return min(longest_s, worth_s) if worth_s >= LEAST_LINGER_S else 0.0
