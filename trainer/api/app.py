"""The trainer's API as an application. Routes are thin: the store and pure functions do the work."""

from __future__ import annotations

import sqlite3
from http import HTTPStatus

from fastapi import FastAPI

from trainer.api import artifacts, errors, files, guard, jobs, metrics, models
from trainer.api.config import ApiConfig
from trainer.api.errors import ApiError
from trainer.api.keys import require_key
from trainer.api.wire import InStore
from trainer.jobs.store import Store


def create_app(config: ApiConfig, store: Store) -> FastAPI:
    """The store stays the caller's, who closes it."""
    app = FastAPI(title="Tether trainer", openapi_url="/openapi.json")
    app.state.config = config
    app.state.store = store
    errors.install(app)
    # artifacts before jobs: `/artifact.tar` and `/artifact/...` are their own.
    for part in (files, artifacts, jobs, models, metrics, guard):
        app.include_router(part.router)

    require_key(app, config.api_key)

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
