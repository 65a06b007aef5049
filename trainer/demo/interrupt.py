"""Ctrl-C that is not lost.

KeyboardInterrupt is raised wherever the program stands, and some libraries catch everything while they
are imported. Whoever goes round a loop therefore asks again whether it came.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

_came = threading.Event()


def listen() -> None:
    """From now on SIGINT and SIGTERM raise KeyboardInterrupt, and are remembered."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def check() -> None:
    """Raises KeyboardInterrupt if one came before and was swallowed."""
    if _came.is_set():
        raise KeyboardInterrupt


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    _came.set()
    raise KeyboardInterrupt
