"""Around every request: count it, time it, give it a span, log what went wrong. Never its body."""

from __future__ import annotations

import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from judge_service import telemetry
from judge_service.api.metrics import ApiMetrics
from judge_service.telemetry import Kind
from shared.logs import fields

logger = logging.getLogger(__name__)

UNMATCHED = "(none)"
"""Route of a path that we do not have: the path itself is the client's."""


class Observe:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, metrics: ApiMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # What leaves no answer behind is a 500: the server makes one.
        seen = {"code": 500, "stream": False}

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["code"] = message["status"]
                seen["stream"] = is_stream(message)
            await send(message)

        began = time.monotonic()
        try:
            if telemetry.enabled():
                await self._traced(scope, receive, watched, seen)
            else:
                await self._app(scope, receive, watched)
        finally:
            seconds = time.monotonic() - began
            code, route = int(seen["code"]), route_of(scope)
            self._metrics.answered(route, code, None if seen["stream"] else seconds)
            if code >= 400:
                level = logging.ERROR if code >= 500 and code != 503 else logging.INFO
                logger.log(
                    level,
                    "refused a request",
                    extra=fields(method=scope["method"], route=route, code=code, ms=round(seconds * 1000, 1)),
                )

    async def _traced(self, scope: Scope, receive: Receive, send: Send, seen: dict[str, Any]) -> None:
        parent = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        method = scope["method"]
        with telemetry.span(
            method, Kind.SERVER, parent=parent, attributes={"http.request.method": method}
        ) as span:
            try:
                await self._app(scope, receive, send)
            finally:
                route, code = route_of(scope), int(seen["code"])
                span.rename(f"{method} {route}")
                span.set({"http.route": route, "http.response.status_code": code})
                if code >= 500:
                    span.fail(f"HTTP {code}")


def is_stream(message: Message) -> bool:
    return any(
        name == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in message["headers"]
    )


def route_of(scope: Scope) -> str:
    """The template that the path matched."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else UNMATCHED
