"""One API key for all of /v1, where there is one."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from fastapi import FastAPI, Request, Response

from trainer.api import errors
from trainer.api.errors import ApiError


def require_key(app: FastAPI, key: str | None) -> None:
    """None: open, for a machine of one's own."""
    if key is None:
        return

    @app.middleware("http")
    async def authorise(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path.startswith("/v1/"):
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
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
