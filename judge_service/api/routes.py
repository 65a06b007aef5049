"""Judgements: read, ask the queue, answer. Stored verdicts are JSON already and pass through as bytes."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from judge_service.api import events
from judge_service.api.admission import admit, check_rubric
from judge_service.api.body import parse_body, read_body, read_bytes
from judge_service.api.context import Caller, Context, Ctx, Who, enter
from judge_service.api.once import Repeat, header_key, made_id
from judge_service.api.openapi import (
    EVENT_SCHEMA,
    EVENTS_EXAMPLE,
    LIST_EXAMPLE,
    READ_EXAMPLE,
    SUBMIT_EXAMPLE,
    VERDICT_EXAMPLE,
    json_answer,
    json_body,
    problems,
)
from judge_service.api.problem import ApiProblem
from judge_service.api.waiting import all_done, any_done, look_until, wait_until
from judge_service.queue.streams import Completion, Found, Gone, Terminal, Unknown
from judge_service.tenants.names import public
from judge_service.worker.trust import suspects_of
from judge_service.worker.verdicts import unjudged_json
from shared.wire import ID_PATTERN, FailureCode, PendingVerdict, ReadJudgements, SubmitJudgements

router = APIRouter(tags=["judgements"])

IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Repeat a submission safely: the same key and body answer about the same judgements.",
    "schema": {"type": "string"},
}
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="Where a broken stream goes on.")
]
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`verdict` events, then `done`; `gone` for what can no longer be read.",
        "content": {"text/event-stream": {"schema": EVENT_SCHEMA, "example": EVENTS_EXAMPLE}},
    },
    204: {"description": "Everything was delivered before; do not reconnect."},
}


@router.post(
    "/v1/judgements",
    summary="Submit items to judge",
    response_model=None,
    responses={
        200: json_answer("JudgementList", {"object": "list", "items": [VERDICT_EXAMPLE]}, "All are done."),
        202: json_answer("JudgementList", LIST_EXAMPLE, "Admitted; some have no verdict yet."),
        **problems(400, 409, 413, 415, 422, 429, 503),
    },
    openapi_extra={"parameters": [IDEMPOTENCY_KEY], **json_body(SubmitJudgements, SUBMIT_EXAMPLE)},
)
async def submit(request: Request) -> Response:
    """All items are admitted or none. 200 when all have their verdict, else 202; send the same again
    as often as you like: an id is judged once."""
    context, caller = enter(request)
    key = header_key(request.headers.get("idempotency-key"))
    body = await read_bytes(request, context.config.max_body_bytes)
    wanted = parse_body(body, SubmitJudgements)
    check_rubric(context, wanted.rubric)
    if key is None:
        ids = [item.id or f"jdg_{uuid4().hex}" for item in wanted.items]
        return await _answer(context, caller, wanted, ids, _admit(context, caller, wanted, ids))
    key = caller.scoped(key)
    before = await context.once.begin(key, body)
    if isinstance(before, Repeat):
        ids = list(before.ids)
        # Known ids are not judged again; one whose verdict is gone is.
        answer = await _answer(context, caller, wanted, ids, _admit(context, caller, wanted, ids))
        answer.headers["Idempotency-Replayed"] = "true"
        return answer
    ids = [item.id or made_id(key, at) for at, item in enumerate(wanted.items)]
    return await _answer(context, caller, wanted, ids, _admit_once(context, caller, wanted, ids, key, body))


async def _admit_once(
    context: Context, caller: Caller, wanted: SubmitJudgements, ids: Sequence[str], key: str, body: bytes
) -> list[Found]:
    try:
        found = await _admit(context, caller, wanted, ids)
    except ApiProblem:
        await context.once.release(key)
        raise
    await context.once.finish(key, body, ids)
    return found


async def _admit(
    context: Context, caller: Caller, wanted: SubmitJudgements, ids: Sequence[str]
) -> list[Found]:
    return await admit(
        context,
        caller,
        wanted.items,
        ids,
        rubric=wanted.rubric,
        priority=wanted.priority,
        expires_at=wanted.expires_at,
        group=wanted.group,
        rationale=wanted.rationale,
    )


async def _answer(
    context: Context,
    caller: Caller,
    wanted: SubmitJudgements,
    ids: Sequence[str],
    standing: Awaitable[list[Found]],
) -> Response:
    """`standing`: admits them."""
    scoped = caller.scoped_all(ids)
    # Watch before they are admitted, or a verdict that is faster than the next look would be no news.
    with context.wakeups.watch(scoped if wanted.wait_s > 0 else ()) as watch:
        known = dict(zip(scoped, await standing, strict=True))
        await wait_until(context.queue, context.wakeups, watch, known, wanted.wait_s, all_done)
    found = list(known.values())
    return _list_response(ids, found, status=200 if all_done(found) else 202)


@router.get(
    "/v1/judgements/events",
    summary="Stream verdicts as they come",
    response_class=StreamingResponse,
    responses={**STREAM, **problems(400, 404, 410, 422, 503)},
)
async def stream_events(
    context: Ctx,
    caller: Who,
    ids: Annotated[list[str] | None, Query(description="Repeated, or separated by commas.")] = None,
    group: Annotated[str | None, Query(pattern=ID_PATTERN)] = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Server-sent events, one a judgement, until all have their verdict. Either `ids` or `group`: of a
    group it covers what is unfinished when the stream is opened. An EventSource that reconnects goes on
    where it was."""
    named = tuple(one for part in ids or () for one in part.split(",") if one)
    return await _stream(context, caller, events.checked(named, group), last_event_id)


@router.post(
    "/v1/judgements/events",
    summary="Stream verdicts of many judgements",
    response_class=StreamingResponse,
    responses={**STREAM, **problems(400, 404, 410, 413, 415, 422, 503)},
    openapi_extra=json_body(events.WatchJudgements, {"ids": ["cake-1", "cake-2"]}),
)
async def stream_many_events(
    request: Request, context: Ctx, caller: Who, last_event_id: LastEventId = None
) -> Response:
    """As GET, for more ids than fit in a URL."""
    wanted = await read_body(request, events.WatchJudgements, context.config.max_body_bytes)
    return await _stream(context, caller, wanted, last_event_id)


async def _stream(
    context: Context, caller: Caller, wanted: events.WatchJudgements, last_event_id: str | None
) -> Response:
    if wanted.group is not None:
        watch = await events.watch_group(context, caller, wanted.group, last_event_id)
    else:
        watch = await events.watch_ids(caller, wanted.ids or (), last_event_id)
    if watch.delivered and len(watch.delivered) == len(watch.ids):
        return Response(status_code=204)
    found = await context.queue.lookup(list(watch.ids))
    if wanted.ids is not None and not watch.delivered:
        _check_known(wanted.ids, found, "ids")
    return StreamingResponse(
        events.stream(context, watch, found, context.config.events_keep_alive_s),
        media_type="text/event-stream",
        # A proxy that buffers or stores would deliver nothing until the end.
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get(
    "/v1/judgements/suspects",
    summary="Which of a group's verdicts are suspect",
    response_model=None,
    responses={
        200: {
            "content": {
                "application/json": {
                    "schema": {"type": "object"},
                    "example": {"object": "list", "group": "run-7", "ids": ["run-7:12:target:3"]},
                }
            }
        },
        **problems(422, 503),
    },
)
async def read_suspects(
    context: Ctx, caller: Who, group: Annotated[str, Query(pattern=ID_PATTERN)]
) -> JSONResponse:
    """Ids whose judge failed its control pairs after their verdict and before any later good ones. Such a
    verdict itself says `suspect` from then on; ask again now and then for those you have read before."""
    ids = await suspects_of(context.queue.redis, context.queue.keys, caller.scoped(group))
    return JSONResponse({"object": "list", "group": group, "ids": [public(one) for one in ids]})


@router.get(
    "/v1/judgements/{judgement_id}",
    summary="Read one judgement",
    response_model=None,
    responses={
        200: json_answer("Judgement", VERDICT_EXAMPLE, "Its verdict, or that it is pending."),
        **problems(404, 410, 503),
    },
)
async def read_one(judgement_id: str, context: Ctx, caller: Who) -> Response:
    found = await context.queue.lookup([caller.scoped(judgement_id)])
    _check_known([judgement_id], found, "judgement_id")
    return _json(_judgement(judgement_id, found[0]))


@router.post(
    "/v1/judgements/read",
    summary="Read several judgements",
    response_model=None,
    responses={
        200: json_answer("JudgementList", LIST_EXAMPLE, "In the order asked."),
        **problems(404, 410, 413, 415, 422, 503),
    },
    openapi_extra=json_body(ReadJudgements, READ_EXAMPLE),
)
async def read_many(request: Request) -> Response:
    """With `wait_s` it answers as soon as any of the ids has its verdict: send only those that you
    have none of."""
    context, caller = enter(request)
    wanted = await read_body(request, ReadJudgements, context.config.max_body_bytes)
    scoped = caller.scoped_all(wanted.ids)
    found = await look_until(context.queue, context.wakeups, scoped, wanted.wait_s, _any_news)
    _check_known(wanted.ids, found, "ids")
    return _list_response(wanted.ids, found, status=200)


@router.delete(
    "/v1/judgements",
    summary="Cancel a group",
    response_model=None,
    responses={
        200: {
            "content": {
                "application/json": {
                    "schema": {"type": "object"},
                    "example": {"object": "judgement.cancellation", "group": "job-1", "cancelled": 12},
                }
            }
        },
        **problems(422, 503),
    },
)
async def cancel_group(
    group: Annotated[str, Query(pattern=ID_PATTERN)], context: Ctx, caller: Who
) -> JSONResponse:
    """Every item of the group that has no verdict yet ends `failed: expired`, message `cancelled`."""
    cancelled = 0
    while leases := await context.queue.unfinished(caller.scoped(group)):
        now = time.time()
        cancelled += await context.queue.complete(
            [
                Completion(lease, unjudged_json(lease, FailureCode.EXPIRED, "cancelled", now=now))
                for lease in leases
            ]
        )
    return JSONResponse({"object": "judgement.cancellation", "group": group, "cancelled": cancelled})


def _any_news(found: Sequence[Found]) -> bool:
    """An unknown id will not become known by waiting."""
    return any_done(found) or any(isinstance(one, Unknown | Gone) for one in found)


def _check_known(ids: Sequence[str], found: Sequence[Found], field: str) -> None:
    """Raises ApiProblem: 404 where an id is unknown, 410 where its verdict can no longer be read."""
    unknown = [at for at, one in enumerate(found) if isinstance(one, Unknown)]
    gone = [at for at, one in enumerate(found) if isinstance(one, Gone)]
    if not unknown and not gone:
        return
    first = ids[(unknown or gone)[0]][:200]
    more = f" and {len(unknown) + len(gone) - 1} more" if len(unknown) + len(gone) > 1 else ""
    errors = [(f"{field}[{at}]" if field == "ids" else field, "unknown id") for at in unknown]
    errors += [(f"{field}[{at}]" if field == "ids" else field, _until(found[at])) for at in gone]
    if unknown:
        message = f"unknown judgement {first}{more}: never submitted, or long gone; submit it again"
        raise ApiProblem(404, message, errors=errors)
    raise ApiProblem(410, f"{first}{more}: {_until(found[gone[0]])}; submit it again", errors=errors)


def _until(found: Found) -> str:
    assert isinstance(found, Gone)
    return f"could be read until {datetime.fromtimestamp(found.until, UTC).isoformat(timespec='seconds')}"


def _judgement(judgement_id: str, found: Found) -> bytes:
    if isinstance(found, Terminal):
        return found.verdict
    return PendingVerdict(id=judgement_id).model_dump_json().encode()


def _list_response(ids: Sequence[str], found: Sequence[Found], *, status: int) -> Response:
    items = b",".join(_judgement(key, one) for key, one in zip(ids, found, strict=True))
    return _json(b'{"object":"list","items":[' + items + b"]}", status)


def _json(content: bytes, status: int = 200) -> Response:
    return Response(content, status_code=status, media_type="application/json")
