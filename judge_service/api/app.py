"""The API as an application, for any ASGI server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI

from judge_service.api.body import add_schemas
from judge_service.api.problem import add_problem_handlers
from judge_service.api.routes import Context, router
from judge_service.config import ApiConfig
from judge_service.queue import JudgementQueue
from shared.wire import JudgementList, ReadJudgements, SubmitJudgements


def create_app(config: ApiConfig, queue: JudgementQueue) -> FastAPI:
    """`app.state.context.wakeups.close()` makes every open long poll answer."""
    context = Context(config, queue)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        listening = asyncio.create_task(context.wakeups.run())
        try:
            yield
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening
            await queue.close()

    app = FastAPI(title="Tether judge service", version="0.1.0", lifespan=lifespan)
    app.state.context = context
    app.include_router(router)
    add_problem_handlers(app, config.retry_after_s)

    plain_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            add_schemas(plain_openapi(), SubmitJudgements, ReadJudgements, JudgementList)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app
