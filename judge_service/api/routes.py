"""The routes: read, ask the queue, answer. Stored verdicts are JSON already and pass through as bytes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Query, Request
from redis.exceptions import RedisError
from starlette.responses import JSONResponse, Response

from judge_service.api.body import openapi_body, read_body
from judge_service.api.problem import ApiProblem
from judge_service.api.waiting import Wakeups, all_done, any_done, look_until
from judge_service.config import ApiConfig
from judge_service.queue import (
    Admitted,
    Completion,
    Conflict,
    Found,
    JudgementQueue,
    QueueFull,
    Terminal,
    Unknown,
    Waiting,
    new_item,
)
from judge_service.verdicts import unjudged_json
from shared.errors import ConfigError
from shared.rubrics.folder import all_rubrics
from shared.rubrics.rubric import find_rubric
from shared.wire import (
    ID_PATTERN,
    FailureCode,
    JudgementList,
    PendingVerdict,
    Problem,
    ReadJudgements,
    SubmitJudgements,
)


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem} for status in statuses}


class Context:
    """What every route works with."""

    def __init__(self, config: ApiConfig, queue: JudgementQueue) -> None:
        self.config = config
        self.queue = queue
        self.wakeups = Wakeups(queue)
        self.rubrics = all_rubrics(config.rubrics_dir)

    @property
    def retry_after(self) -> dict[str, str]:
        return {"Retry-After": str(self.config.retry_after_s)}


def _context(request: Request) -> Context:
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


Ctx = Annotated[Context, Depends(_context)]

router = APIRouter()


@router.post(
    "/v1/judgements",
    summary="Submit items to judge",
    response_model=JudgementList,
    responses={202: {"model": JudgementList}, **_problems(409, 413, 422, 503)},
    openapi_extra=openapi_body(SubmitJudgements),
)
async def submit(request: Request, context: Ctx) -> Response:
    """All items are admitted or none. 200 when all have their verdict, else 202; send the same again
    as often as you like: an id is judged once."""
    wanted = await read_body(request, SubmitJudgements, context.config.max_body_bytes)
    _check_rubric(wanted.rubric, context)
    ids = [item.id or f"jdg_{uuid4().hex}" for item in wanted.items]
    items = [new_item(key, item, wanted.rubric) for key, item in zip(ids, wanted.items, strict=True)]
    admission = await context.queue.submit(
        items,
        rubric=wanted.rubric,
        priority=wanted.priority,
        expires_at=wanted.expires_at,
        group=wanted.group,
    )
    match admission:
        case Conflict(conflicts):
            message = "this id was used before with another text or rubric"
            raise ApiProblem(
                409,
                f"{message}: {', '.join(conflicts[:5])}; nothing was admitted",
                errors=[(f"items[{ids.index(one)}].id", f"{one}: {message}") for one in conflicts],
            )
        case QueueFull(depth, limit):
            raise ApiProblem(
                503,
                f"the queue holds {depth} of {limit} items; {len(items)} more do not fit; none was admitted",
                headers=context.retry_after,
            )
        case Admitted(verdicts):
            found: list[Found] = [Terminal(v) if v is not None else Waiting() for v in verdicts]
    if wanted.wait_s > 0 and not all_done(found):
        found = await look_until(context.queue, context.wakeups, ids, wanted.wait_s, all_done)
    return _list_response(ids, found, status=200 if all_done(found) else 202)


@router.get(
    "/v1/judgements/{judgement_id}",
    summary="Read one judgement",
    response_model=None,
    responses=_problems(404, 503),
)
async def read_one(judgement_id: str, context: Ctx) -> Response:
    found = await context.queue.lookup([judgement_id])
    _check_known([judgement_id], found, "judgement_id")
    return _json(_judgement(judgement_id, found[0]))


@router.post(
    "/v1/judgements/read",
    summary="Read several judgements",
    response_model=JudgementList,
    responses=_problems(404, 413, 422, 503),
    openapi_extra=openapi_body(ReadJudgements),
)
async def read_many(request: Request, context: Ctx) -> Response:
    """With `wait_s` it answers as soon as any of the ids has its verdict: send only those that you
    have none of."""
    wanted = await read_body(request, ReadJudgements, context.config.max_body_bytes)
    found = await look_until(context.queue, context.wakeups, wanted.ids, wanted.wait_s, _any_news)
    _check_known(wanted.ids, found, "ids")
    return _list_response(wanted.ids, found, status=200)


@router.delete("/v1/judgements", summary="Cancel a group", response_model=None, responses=_problems(422, 503))
async def cancel_group(group: Annotated[str, Query(pattern=ID_PATTERN)], context: Ctx) -> JSONResponse:
    """Every item of the group that has no verdict yet ends `failed: expired`, message `cancelled`."""
    cancelled = 0
    while leases := await context.queue.unfinished(group):
        now = time.time()
        cancelled += await context.queue.complete(
            [
                Completion(lease, unjudged_json(lease, FailureCode.EXPIRED, "cancelled", now=now))
                for lease in leases
            ]
        )
    return JSONResponse({"object": "judgement.cancellation", "group": group, "cancelled": cancelled})


@router.get("/livez", summary="Is this process alive?")
async def livez() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", summary="Can it take work?", response_model=None)
async def readyz(context: Ctx) -> JSONResponse:
    """200 when Redis takes writes. No worker alive is still ready: work is taken and waits."""
    try:
        await context.queue.check_writable()
        depth, workers = await context.queue.depth(), await context.queue.workers()
    except RedisError as error:
        down = {"status": "down", "detail": f"{type(error).__name__}: {error}"}
        components: dict[str, object] = {"redis": down, "queue": None, "workers": None}
        return JSONResponse(
            {"status": "not_ready", "components": components}, status_code=503, headers=context.retry_after
        )
    components = {
        "redis": {"status": "ok", "detail": None},
        "queue": {"depth": depth, "limit": context.queue.limit},
        "workers": {"alive": len(workers), "items": workers},
    }
    return JSONResponse({"status": "ready", "components": components})


def _check_rubric(name: str, context: Context) -> None:
    try:
        find_rubric(name, context.rubrics)
    except ConfigError as error:
        raise ApiProblem(422, str(error), errors=[("rubric", str(error))]) from None


def _any_news(found: Sequence[Found]) -> bool:
    """An unknown id will not become known by waiting."""
    return any_done(found) or any(isinstance(one, Unknown) for one in found)


def _check_known(ids: Sequence[str], found: Sequence[Found], field: str) -> None:
    unknown = [index for index, one in enumerate(found) if isinstance(one, Unknown)]
    if not unknown:
        return
    names = ", ".join(ids[index][:200] for index in unknown[:5])
    raise ApiProblem(
        404,
        f"unknown judgement {names}: never submitted, or read too late; submit it again",
        errors=[(f"{field}[{index}]" if field == "ids" else field, "unknown id") for index in unknown],
    )


def _judgement(judgement_id: str, found: Found) -> bytes:
    if isinstance(found, Terminal):
        return found.verdict
    return PendingVerdict(id=judgement_id).model_dump_json().encode()


def _list_response(ids: Sequence[str], found: Sequence[Found], *, status: int) -> Response:
    items = b",".join(_judgement(key, one) for key, one in zip(ids, found, strict=True))
    return _json(b'{"object":"list","items":[' + items + b"]}", status)


def _json(content: bytes, status: int = 200) -> Response:
    return Response(content, status_code=status, media_type="application/json")
