"""Waiting for what a real process does in its own time: for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T | None], what: str, within_s: float = 120.0, every_s: float = 0.05) -> T:
    """The first value of `condition` that is true."""
    end = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {within_s:g} s: {what}"
        time.sleep(every_s)
    return value
