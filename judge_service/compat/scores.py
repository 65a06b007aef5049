"""What contracts without a word for failure have in common: every item scored, or an HTTP error."""

from __future__ import annotations

import time
from collections.abc import Sequence
from uuid import uuid4

from pydantic import TypeAdapter

from judge_service.api.admission import admit, check_rubric
from judge_service.api.context import Caller, Context
from judge_service.api.problem import ApiProblem
from judge_service.api.waiting import all_done, look_until
from judge_service.queue.streams import Terminal
from shared.wire import FailedVerdict, FailureCode, JudgementItem, Priority, ScoredVerdict, Verdict

VERDICT: TypeAdapter[ScoredVerdict | FailedVerdict] = TypeAdapter(Verdict)

STATUS = {FailureCode.TIMEOUT: 504, FailureCode.EXPIRED: 504, FailureCode.OVERLOADED: 503}
"""Of an answer, by the code of the first verdict that failed; any other code is a 502."""


async def judge_all(
    context: Context,
    caller: Caller,
    items: Sequence[JudgementItem],
    *,
    rubric: str | None,
    priority: Priority,
    field: str,
) -> list[ScoredVerdict]:
    """One verdict an item, in their order.

    What nobody waits for any more is not judged: the items expire with the wait.

    Args:
        field: what the client calls an item, for messages.

    Raises:
        ApiProblem: 502, 503 or 504 where any item has no score; 422 for an unknown rubric; as `admit`.
    """
    name = rubric or context.config.default_rubric
    check_rubric(context, name)
    if not items:
        return []
    wait_s = context.config.contract_wait_s
    ids = [f"jdg_{uuid4().hex}" for _ in items]
    found = await admit(
        context,
        caller,
        items,
        ids,
        rubric=name,
        priority=priority,
        expires_at=time.time() + wait_s,
        group=None,
    )
    if not all_done(found):
        found = await look_until(context.queue, context.wakeups, caller.scoped_all(ids), wait_s, all_done)
    if not all_done(found):
        # Also when the process stops: the client's next try goes to another.
        raise ApiProblem(
            503 if context.draining else 504,
            "the service stops; send the same again"
            if context.draining
            else f"no verdict within {wait_s:g} s; send the same again",
            headers=context.retry_after,
        )
    verdicts = [VERDICT.validate_json(one.verdict) for one in found if isinstance(one, Terminal)]
    scored = [verdict for verdict in verdicts if isinstance(verdict, ScoredVerdict)]
    if len(scored) < len(items):
        raise _failure(verdicts, field, context)
    return scored


def _failure(verdicts: Sequence[ScoredVerdict | FailedVerdict], field: str, context: Context) -> ApiProblem:
    failed = [(at, one.error) for at, one in enumerate(verdicts) if isinstance(one, FailedVerdict)]
    at, first = failed[0]
    more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    status = STATUS.get(first.code, 502)
    return ApiProblem(
        status,
        f"the judge could not grade {field}[{at}]{more}: {first.code}: {first.message}",
        errors=[(f"{field}[{at}]", f"{error.code}: {error.message}") for at, error in failed],
        headers=context.retry_after if status == 503 else None,
    )
