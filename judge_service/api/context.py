"""What every route works with, and whom it works for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Request

from judge_service.api.auth import authenticate
from judge_service.api.metrics import ApiMetrics
from judge_service.api.once import Once
from judge_service.api.rate import RateLimiter
from judge_service.api.waiting import Wakeups
from judge_service.config import ApiConfig
from judge_service.queue.streams import JudgementQueue
from judge_service.tenants.keys import KeyRing, Limits
from judge_service.tenants.names import scoped
from shared.rubrics.folder import all_rubrics
from shared.rubrics.rubric import find_rubric


class Context:
    def __init__(self, config: ApiConfig, queue: JudgementQueue) -> None:
        self.config = config
        self.queue = queue
        self.wakeups = Wakeups(queue)
        self.keys = None if config.keys_file is None else KeyRing(config.keys_file)
        self.rate = RateLimiter(queue.redis, queue.keys)
        self.once = Once(queue.redis, queue.keys, keep_s=config.queue.result_ttl_s)
        self.metrics = ApiMetrics()
        self.rubrics = all_rubrics(config.rubrics_dir)
        find_rubric(config.default_rubric, self.rubrics)  # At the start, not at the first request.
        self.draining = False

    @property
    def retry_after(self) -> dict[str, str]:
        return {"Retry-After": str(self.config.retry_after_s)}

    def drain(self) -> None:
        """The process is about to stop: not ready from now on, and every open poll answers."""
        self.draining = True
        self.wakeups.close()


class Caller:
    """The tenant of a request. `name` is None where the service has no keys, and so one tenant."""

    def __init__(self, name: str | None, limits: Limits | None) -> None:
        self.name = name
        self.limits = limits

    def scoped(self, name: str) -> str:
        return scoped(self.name, name)

    def scoped_all(self, names: Sequence[str]) -> list[str]:
        return list(names) if self.name is None else [scoped(self.name, name) for name in names]


def enter(request: Request) -> tuple[Context, Caller]:
    """For the routes that are asked most: FastAPI's dependencies cost as much as all the rest of them.

    Raises:
        ApiProblem: 401.
    """
    context = request.app.state.context
    assert isinstance(context, Context)
    if context.keys is None:
        return context, Caller(None, None)
    tenant = authenticate(request, context.keys)
    return context, Caller(tenant.name, tenant.limits)


# Plain functions would run in a thread each: FastAPI awaits only coroutines where they stand.
async def _context(request: Request) -> Context:
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


async def _caller(request: Request) -> Caller:
    return enter(request)[1]


Ctx = Annotated[Context, Depends(_context)]
Who = Annotated[Caller, Depends(_caller)]
