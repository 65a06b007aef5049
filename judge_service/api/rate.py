"""How fast a tenant may submit: a token bucket in Redis, so that all API processes share it."""

from __future__ import annotations

import math
from importlib import resources

from redis.asyncio import Redis

from judge_service.api.problem import ApiProblem
from judge_service.tenants.keys import Limits
from shared.redis_keys import JudgeKeys


class RateLimiter:
    def __init__(self, redis: Redis, keys: JudgeKeys) -> None:
        source = resources.files("judge_service.queue").joinpath("lua", "take_tokens.lua")
        self._take = redis.register_script(source.read_text(encoding="utf-8"))
        self._keys = keys

    async def charge(self, tenant: str, limits: Limits, items: int) -> None:
        """Take as many tokens as there are items.

        Raises:
            ApiProblem: 429 when there are too few now; 422 when there can never be so many.
        """
        if items > limits.burst:
            raise ApiProblem(
                422,
                f"{items} items are more than tenant {tenant!r} may ever send at once ({limits.burst});"
                " send smaller batches",
                errors=[("items", f"at most {limits.burst} for this tenant")],
            )
        wait_ms = int(
            await self._take(keys=[self._keys.rate(tenant)], args=[limits.items_per_s, limits.burst, items])
        )
        if wait_ms > 0:
            raise ApiProblem(
                429,
                f"tenant {tenant!r} may submit {limits.items_per_s:g} items a second ({limits.burst} at"
                f" once); {items} more are in {wait_ms / 1000:.1f} s; none was admitted",
                headers={"Retry-After": str(math.ceil(wait_ms / 1000))},
            )
