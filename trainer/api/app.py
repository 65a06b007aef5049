"""The trainer's API as an application. Routes are thin: the store and pure functions do the work."""

from __future__ import annotations

import hmac
import sqlite3
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from fastapi import FastAPI, Request, Response

from trainer.api import artifacts, errors, files, jobs, metrics, models
from trainer.api.config import ApiConfig
from trainer.api.errors import ApiError
from trainer.api.wire import InStore
from trainer.jobs.store import Store


def create_app(config: ApiConfig, store: Store) -> FastAPI:
    """The store stays the caller's, who closes it."""
    app = FastAPI(title="Tether trainer", openapi_url="/openapi.json")
    app.state.config = config
    app.state.store = store
    errors.install(app)
    # artifacts before jobs: `/artifact.tar` and `/artifact/...` are their own.
    for part in (files, artifacts, jobs, models, metrics):
        app.include_router(part.router)

    @app.middleware("http")
    async def authorise(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if config.api_key is not None and request.url.path.startswith("/v1/"):
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {config.api_key}".encode()):
                return errors.answer(
                    request,
                    ApiError(
                        HTTPStatus.UNAUTHORIZED,
                        "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
                        code="invalid_api_key",
                        type="authentication_error",
                        headers={"WWW-Authenticate": "Bearer"},
                    ),
                )
        return await call_next(request)

    @app.get("/livez", tags=["health"])
    def livez() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"])
    def readyz(store: InStore) -> dict[str, object]:
        """Jobs are taken without a runner too, and wait for one: `runners` says how many are alive."""
        try:
            return {"status": "ok", "runners": store.runners_alive()}
        except sqlite3.Error as error:
            raise ApiError(
                HTTPStatus.SERVICE_UNAVAILABLE, f"the job store cannot be read: {error}", type="server_error"
            ) from error

    return app
