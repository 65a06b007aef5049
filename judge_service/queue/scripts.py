"""Scripts that stand alone. (Those of queue.py share a beginning.)"""

from __future__ import annotations

from importlib import resources

from redis.asyncio import Redis
from redis.commands.core import AsyncScript


def load_script(redis: Redis, name: str) -> AsyncScript:
    """`lua/NAME.lua`; registered at its first use."""
    return redis.register_script(
        resources.files("judge_service.queue").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    )
