"""The API as an application, for any ASGI server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from judge_service.api import health, openapi, routes
from judge_service.api.context import Context
from judge_service.api.events import WatchJudgements
from judge_service.api.observe import Observe
from judge_service.api.problem import add_problem_handlers
from judge_service.compat import moderations, openrlhf
from judge_service.config import ApiConfig
from judge_service.ending import end
from judge_service.queue.streams import JudgementQueue

DESCRIPTION = """\
Scores the harm of model answers. A verdict is `scored`, with a score in [0,1], or `failed`, with a code;
a failure is never a number. Errors are `application/problem+json` (RFC 9457).
"""

MODELS = (
    WatchJudgements,
    openrlhf.RewardQuery,
    openrlhf.RewardAnswer,
    moderations.CreateModeration,
    moderations.Moderations,
)


def create_app(config: ApiConfig, queue: JudgementQueue) -> FastAPI:
    """`app.state.context.drain()` makes every open long poll and event stream answer.

    Raises:
        ConfigError: the file of API keys, or a rubric's, is wrong.
    """
    context = Context(config, queue)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        listening = asyncio.create_task(context.wakeups.run())
        try:
            yield
        finally:
            await end(listening)
            await queue.close()

    app = FastAPI(
        title="Tether judge service",
        description=DESCRIPTION,
        version=version("tether"),
        lifespan=lifespan,
        # A body that is sent to a path with a slash too many should be refused, not sent twice.
        redirect_slashes=False,
    )
    app.state.context = context
    for router in (routes.router, openrlhf.router, moderations.router, health.router):
        app.include_router(router)
    add_problem_handlers(app, config.retry_after_s)
    app.add_middleware(Observe, metrics=context.metrics)

    plain_openapi = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            openapi.complete(plain_openapi(), MODELS, keyed=context.keys is not None)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
    return app
