"""From checked items to admitted ones: what the judgements route and the contracts have in common."""

from __future__ import annotations

from collections.abc import Sequence

from judge_service import telemetry
from judge_service.api.context import Caller, Context
from judge_service.api.problem import ApiProblem
from judge_service.queue.streams import Admitted, Conflict, Found, QueueFull, Terminal, Waiting, new_item
from judge_service.telemetry import Kind
from judge_service.tenants.names import public
from shared.errors import ConfigError
from shared.rubrics.rubric import find_rubric
from shared.wire import JudgementItem, Priority


async def admit(
    context: Context,
    caller: Caller,
    items: Sequence[JudgementItem],
    ids: Sequence[str],
    *,
    rubric: str,
    priority: Priority,
    expires_at: float | None,
    group: str | None,
    rationale: bool = False,
) -> list[Found]:
    """All are admitted or none. `ids` are public, one an item; how each stands, in their order.

    Raises:
        ApiProblem: 409 for an id used otherwise before, 422 or 429 for the tenant's limits, 503 for a
            full queue.
    """
    if caller.name is not None and caller.limits is not None:
        await context.rate.charge(caller.name, caller.limits, len(items))
    with telemetry.span(
        "send judgements",
        Kind.PRODUCER,
        attributes={"messaging.system": "redis", "messaging.batch.message_count": len(items)},
    ):
        admission = await context.queue.submit(
            [new_item(caller.scoped(key), item, rubric) for key, item in zip(ids, items, strict=True)],
            rubric=rubric,
            priority=priority,
            expires_at=expires_at,
            group=None if group is None else caller.scoped(group),
            rationale=rationale,
            traceparent=telemetry.traceparent(),
        )
    match admission:
        case Conflict(conflicts):
            message = "this id was used before with another text or rubric"
            named = [public(one) for one in conflicts]
            raise ApiProblem(
                409,
                f"{message}: {', '.join(named[:5])}; nothing was admitted",
                errors=[(f"items[{ids.index(one)}].id", f"{one}: {message}") for one in named],
            )
        case QueueFull(depth, limit):
            raise ApiProblem(
                503,
                f"the queue holds {depth} of {limit} items; {len(items)} more do not fit; none was admitted",
                headers=context.retry_after,
            )
        case Admitted(verdicts):
            context.metrics.submitted(priority, len(items))
            return [Terminal(v) if v is not None else Waiting() for v in verdicts]


def check_rubric(context: Context, name: str) -> None:
    """Raises ApiProblem 422 where there is no such rubric."""
    try:
        find_rubric(name, context.rubrics)
    except ConfigError as error:
        raise ApiProblem(422, str(error), errors=[("rubric", str(error))]) from None
