"""Errors as clients expect them: OpenAI's shape under /v1, RFC 9457 elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from shared.errors import ConfigError, DataError, ModelError, TetherError
from shared.wire import Problem
from trainer.jobs.states import IllegalTransition, UnknownId
from trainer.jobs.store import FileInUse

logger = logging.getLogger(__name__)


class ApiError(TetherError):
    """An answer in OpenAI's shape. `param` names the field that is wrong."""

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        type: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error_code = code
        self.param = param
        self.type = type
        self.headers = headers


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, message, param=param, code=code)


def from_validation(error: ValidationError, body: object) -> ApiError:
    """Names the first wrong field by its path in the request, without the tags of unions."""
    by_param: dict[str, list[dict[str, Any]]] = {}
    for found in error.errors(include_url=False, include_context=False, include_input=True):
        param = field_path(found["loc"], body, missing=found["type"] == "missing")
        by_param.setdefault(param, []).append(dict(found))
    param, found_here = next(iter(by_param.items()))
    if param == "method.type":
        return bad_request(
            f"method {_short(found_here[0]['input'])} is not offered;"
            " this service fine-tunes by 'supervised'",
            param=param,
            code="unsupported_method",
        )
    message = " or ".join(dict.fromkeys(found["msg"].removeprefix("Value error, ") for found in found_here))
    code = {"extra_forbidden": "unknown_parameter", "missing": "missing_required_parameter"}
    return bad_request(
        f"{param}: {message}" if param else message,
        param=param or None,
        code=code.get(found_here[0]["type"], "invalid_value"),
    )


def field_path(location: Sequence[int | str], body: object, *, missing: bool = False) -> str:
    """`("safety", "method", "adaptive", "beta_min")` -> `safety.method.beta_min`: the tags that pydantic
    puts between are the parts that the body does not have. Of a `missing` field the last part is kept."""
    path = ""
    here = body
    for index, part in enumerate(location):
        last = index == len(location) - 1
        if isinstance(part, int) and isinstance(here, list) and part < len(here):
            here = here[part]
            path += f"[{part}]"
        elif isinstance(part, str) and isinstance(here, dict) and (part in here or (last and missing)):
            here = here.get(part)
            path += f".{part}" if path else part
    return path


def install(app: FastAPI) -> None:
    @app.exception_handler(TetherError)
    async def tether_error(request: Request, error: TetherError) -> JSONResponse:
        return answer(request, translate(error))

    @app.exception_handler(RequestValidationError)
    async def request_error(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = str(first["loc"][-1]) if first["loc"] else None
        return answer(request, bad_request(f"{param}: {first['msg']}", param=param, code="invalid_value"))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        message = f"{request.method} {request.url.path}: {error.detail}"
        code = {HTTPStatus.NOT_FOUND: "unknown_url", HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed"}
        return answer(request, ApiError(status, message, code=code.get(status), headers=error.headers))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises it again after this answer, so that it is in the log with its trace.
        return answer(
            request,
            ApiError(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                "the service failed at this request; its log says why",
                type="server_error",
                code="internal_error",
            ),
        )


def translate(error: TetherError) -> ApiError:
    match error:
        case ApiError():
            return error
        case UnknownId(param=param):
            # Named in the path it is not found; named in a field the request is wrong.
            in_path = param in ("file_id", "fine_tuning_job_id")
            status = HTTPStatus.NOT_FOUND if in_path else HTTPStatus.BAD_REQUEST
            return ApiError(status, str(error), param=param, code=error.code)
        case IllegalTransition():
            return bad_request(str(error), code=error.code)
        case FileInUse():
            return ApiError(HTTPStatus.CONFLICT, str(error), param="file_id", code=error.code)
        case ModelError():
            return bad_request(str(error), param="model", code="model_not_found")
        case DataError():
            return bad_request(str(error), param="file", code=error.code)
        case ConfigError():
            return bad_request(str(error), param=getattr(error, "param", None), code="invalid_value")
        case _:
            logger.error("no answer is defined for %s: %s", type(error).__name__, error)
            return ApiError(
                HTTPStatus.INTERNAL_SERVER_ERROR, str(error), type="server_error", code=error.code
            )


def answer(request: Request, error: ApiError) -> JSONResponse:
    if request.url.path.startswith("/v1/") or request.url.path == "/v1":
        body = {"message": str(error), "type": error.type, "param": error.param, "code": error.error_code}
        return JSONResponse({"error": body}, status_code=error.status, headers=_headers(error))
    problem = Problem(
        title=error.status.phrase, status=error.status, detail=str(error), instance=request.url.path
    )
    return JSONResponse(
        problem.model_dump(exclude_none=True),
        status_code=error.status,
        headers=_headers(error),
        media_type="application/problem+json",
    )


def _headers(error: ApiError) -> dict[str, str] | None:
    return None if error.headers is None else dict(error.headers)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
