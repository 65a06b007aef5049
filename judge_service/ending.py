"""Ending a task for sure."""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN_S = 0.1


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel it until it has ended. What it raised stays in it.

    Once is not enough: until Python 3.12, `asyncio.wait_for`, through which redis-py sends, loses a
    cancellation that comes just when what it waits for is done.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=AGAIN_S)
