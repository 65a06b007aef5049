"""The guard as an application. Errors have the trainer API's shapes."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

from fastapi import FastAPI, Request

from shared.errors import ConfigError, DataError, ModelError
from trainer.api import errors
from trainer.api.body import parse_body, read_body
from trainer.api.errors import ApiError, bad_request
from trainer.api.keys import require_key
from trainer.guard.reading import Guard
from trainer.guard.wire import GuardReading, GuardRequest

MAX_WAITING = 64
"""Requests that may wait for the model; past it they are sent away, since a gate that answers late holds up
everything behind it."""
MAX_BODY_BYTES = 2 * 1024 * 1024


def create_app(guard: Guard, *, api_key: str | None = None, max_waiting: int = MAX_WAITING) -> FastAPI:
    app = FastAPI(title="Tether guard", openapi_url="/openapi.json")
    errors.install(app)
    require_key(app, api_key)
    # One at a time: on one device, two forwards at once take as long as one after the other.
    reading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="guard")
    waiting = 0

    @app.post("/v1/guard", tags=["guard"])
    async def read(request: Request) -> GuardReading:
        nonlocal waiting
        asked = parse_body(await read_body(request, MAX_BODY_BYTES), GuardRequest)
        if waiting >= max_waiting:
            raise ApiError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{waiting} requests wait for the guard already; this one was not read",
                code="overloaded",
                type="server_error",
                headers={"Retry-After": "1"},
            )
        waiting += 1
        came = time.perf_counter()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                reading, lambda: guard.read(asked, queue_ms=1000 * (time.perf_counter() - came))
            )
        except DataError as error:
            raise bad_request(str(error), param="input", code="invalid_input") from error
        except ConfigError as error:
            raise bad_request(str(error), param="target_fpr", code="invalid_value") from error
        except ModelError as error:
            raise ApiError(
                HTTPStatus.INTERNAL_SERVER_ERROR, str(error), code="not_finite", type="server_error"
            ) from error
        finally:
            waiting -= 1

    @app.get("/livez", tags=["health"])
    def livez() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"])
    def readyz() -> dict[str, object]:
        card = guard.probe.card
        return {
            "status": "ok",
            "model": card.model,
            "head": card.head,
            "target_fprs": [threshold.target_fpr for threshold in card.thresholds],
        }

    return app
