"""Liveness, readiness, metrics."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from redis.exceptions import RedisError
from starlette.responses import JSONResponse, Response

from judge_service.api.context import Context, Ctx
from judge_service.api.metrics import CONTENT_TYPE, breaker_state
from judge_service.api.openapi import READY_EXAMPLE
from judge_service.state import ServiceState, read_redis_health, read_state

router = APIRouter(tags=["health"])

METRICS_REDIS_S = 4.0
"""A Redis that is silent for longer counts as away: a scrape that took its whole time would look as if it
were this process that is."""


@router.get(
    "/livez",
    summary="Is this process alive?",
    responses={200: {"content": {"application/json": {"example": {"status": "ok"}}}}},
)
async def livez() -> dict[str, str]:
    """Asks nobody else, so that an outage of Redis restarts no API."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Can it take work?",
    response_model=None,
    responses={
        200: {
            "content": {"application/json": {"schema": {"type": "object"}, "example": READY_EXAMPLE}},
        },
        503: {
            "description": "Not ready; the components say why.",
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
    },
)
async def readyz(context: Ctx) -> JSONResponse:
    """200 when Redis takes writes, the queue has room, and the process is not about to stop.

    Workers and their backends are reported and decide nothing: without any, work is taken and waits.
    """
    keys = None if context.keys is None else {"status": "stale" if context.keys.trouble else "ok"}
    try:
        await context.queue.check_writable()
        state = await _state(context)
    except RedisError as error:
        down = {"status": "down", "detail": f"{type(error).__name__}: {error}"}
        return _not_ready(context, {"redis": down, "queue": None, "workers": None, "keys": keys})
    depth = {priority: stream.depth for priority, stream in state.streams.items()}
    room = sum(depth.values()) < state.limit
    open_breakers = [worker.get("worker") for worker in state.workers if breaker_state(worker) != "closed"]
    components: dict[str, object] = {
        "redis": {"status": "ok", "detail": None},
        "queue": {"status": "ok" if room else "full", "depth": depth, "limit": state.limit},
        "workers": {"alive": len(state.workers), "not_taking": open_breakers, "items": list(state.workers)},
        "keys": keys,
    }
    if context.draining or not room:
        return _not_ready(context, components, "draining" if context.draining else "not_ready")
    return JSONResponse({"status": "ready", "components": components})


@router.get(
    "/metrics",
    summary="Prometheus metrics of this process",
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}},
)
async def metrics(context: Ctx) -> Response:
    try:
        async with asyncio.timeout(METRICS_REDIS_S):
            state, redis = await _state(context), await read_redis_health(context.queue.redis)
        text = context.metrics.render(state, redis)
    except (RedisError, TimeoutError):
        text = context.metrics.render(None)
    return Response(text, headers={"Content-Type": CONTENT_TYPE})


async def _state(context: Context) -> ServiceState:
    return await read_state(context.queue.redis, context.queue.keys, context.queue.limit)


def _not_ready(context: Context, components: dict[str, object], status: str = "not_ready") -> JSONResponse:
    return JSONResponse(
        {"status": status, "components": components}, status_code=503, headers=context.retry_after
    )
