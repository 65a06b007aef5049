"""/v1/guard: handed on, as it is, to the process that holds the model."""

from __future__ import annotations

from http import HTTPStatus

import httpx
from fastapi import APIRouter, Request, Response

from trainer.api.body import read_body
from trainer.api.errors import ApiError
from trainer.api.wire import WithConfig

TIMEOUT_S = 30.0

router = APIRouter(prefix="/v1/guard", tags=["guard"])


@router.post("")
async def guard(request: Request, config: WithConfig) -> Response:
    """503 where no guard is configured, or the one that is does not answer: a prompt that nothing has read
    is no safe prompt."""
    if config.guard_url is None:
        raise _unavailable(
            "no guard is configured; start one with `tether guard serve`, and this API with --guard-url URL",
            "guard_not_configured",
        )
    body = await read_body(request, config.max_body_bytes)
    # The guard has the same key, where there is one.
    headers = {name: request.headers[name] for name in ("authorization",) if name in request.headers}
    try:
        # Certificates take some 20 ms to load: only where there is one to check.
        checked = config.guard_url.startswith("https:")
        async with httpx.AsyncClient(verify=checked, timeout=TIMEOUT_S) as client:
            found = await client.post(f"{config.guard_url}/v1/guard", content=body, headers=headers)
    except httpx.HTTPError as error:
        raise _unavailable(
            f"the guard at {config.guard_url} gave no answer ({type(error).__name__}: {error})",
            "guard_unavailable",
        ) from error
    kept = {name: found.headers[name] for name in ("retry-after",) if name in found.headers}
    return Response(found.content, found.status_code, kept, found.headers.get("content-type"))


def _unavailable(message: str, code: str) -> ApiError:
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        message,
        code=code,
        type="server_error",
        headers={"Retry-After": "5"},
    )
