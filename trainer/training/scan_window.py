"""How many readings are with the judge at once while it reads a whole file. Pure."""

from __future__ import annotations

PATIENCE = 4
"""A reading waits behind all that were sent before it: a window may take this part of the deadline."""


class ScanWindow:
    """Grows while the judge is quick, and shrinks before what waits in it grows too old to be answered.

    Args:
        least: readings, at first and at least; what a run that does not scan has out too.
        most: readings.
        deadline_s: how long a reading waits for its verdicts.
    """

    def __init__(self, least: int, most: int, deadline_s: float) -> None:
        self._least = least
        self._most = max(least, most)
        self._deadline_s = deadline_s
        self._unheard = 0
        self._away = False
        self._size = least

    @property
    def size(self) -> int:
        return UNBOUNDED if self._away else self._size

    def read(self, waited_s: float, *, heard: bool) -> None:
        """After each reading, in order.

        Args:
            waited_s: for this reading, since the one before was in.
            heard: the judge has said something since then, or nothing has timed out yet.
        """
        self._unheard = 0 if heard else self._unheard + 1
        # Nothing of a whole window: the judge is away, and the rest waits once, together.
        self._away = self._away or self._unheard >= self._least
        # At this pace a whole window takes so long.
        whole_s = waited_s * self._size
        if whole_s > self._deadline_s / 2:
            self._size = max(self._least, self._size // 2)
        elif whole_s < self._deadline_s / PATIENCE:
            self._size = min(self._most, self._size + 1)


UNBOUNDED = 2**40
