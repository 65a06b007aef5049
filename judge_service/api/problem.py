"""Every error as RFC 9457 `application/problem+json`."""

from __future__ import annotations

import http
import logging
from collections.abc import Mapping, Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from redis.exceptions import RedisError, ResponseError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from shared.logs import fields
from shared.wire import Problem

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class ApiProblem(Exception):
    """Raised by a route; answered as it says."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors
        """(field, message) of each field that is wrong."""
        self.headers = headers


def problem_response(problem: ApiProblem, request: Request) -> Response:
    body = Problem(
        title=http.HTTPStatus(problem.status).phrase,
        status=problem.status,
        detail=problem.detail,
        instance=request.url.path,
        errors=[{"field": field, "message": message} for field, message in problem.errors] or None,
    )
    return Response(
        body.model_dump_json(exclude_none=True),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=dict(problem.headers or {}),
    )


def invalid(error: ValidationError | RequestValidationError) -> ApiProblem:
    """422 with one entry a wrong field, and without the values, which are the graded text."""
    entries = [(field_path(e["loc"]), str(e["msg"])) for e in error.errors()]
    where = "; ".join(f"{field}: {message}" for field, message in entries[:3])
    more = f" and {len(entries) - 3} more" if len(entries) > 3 else ""
    return ApiProblem(422, f"the request is wrong: {where}{more}", errors=entries)


def field_path(location: Sequence[str | int]) -> str:
    """`("items", 3, "id")` -> `items[3].id`; the body itself is `body`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "body"


def allowed_methods(app: FastAPI, path: str) -> list[str]:
    """What may be asked of a path. (The router itself names the methods of the first route that matches.)"""
    matching = [route for route in app.routes if isinstance(route, Route) and route.path_regex.match(path)]
    # A path that stands as it is in a template is no parameter of another.
    literal = [route for route in matching if route.path == path] or matching
    return sorted({method for route in literal for method in route.methods or ()})


def add_problem_handlers(app: FastAPI, retry_after_s: int) -> None:
    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiProblem)
        return problem_response(error, request)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(allowed_methods(app, request.url.path))
        return problem_response(ApiProblem(error.status_code, str(error.detail), headers=headers), request)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_response(invalid(error), request)

    async def on_redis(request: Request, error: Exception) -> Response:
        # The words of Redis itself may repeat a command's arguments, the graded text among them.
        words = str(error).split(" ", 1)[0] if isinstance(error, ResponseError) else str(error)
        logger.error("Redis failed", extra=fields(error=f"{type(error).__name__}: {words}"))
        return problem_response(
            ApiProblem(
                503,
                "the queue cannot be reached; nothing is lost, send the same again",
                headers={"Retry-After": str(retry_after_s)},
            ),
            request,
        )

    async def on_bug(request: Request, error: Exception) -> Response:
        detail = f"a fault of this service's ({type(error).__name__}); its log says where"
        return problem_response(ApiProblem(500, detail), request)

    app.add_exception_handler(Exception, on_bug)
    app.add_exception_handler(ApiProblem, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(RedisError, on_redis)
