"""Asking the backend, in a span that the submissions' traces lead to."""

from __future__ import annotations

from collections.abc import Sequence

from judge_service import telemetry
from judge_service.backends.base import Backend, BackendError, Grade, GradeFailure, GradeRequest
from judge_service.queue.items import Lease
from judge_service.telemetry import Attributes, Kind


async def judge_traced(
    backend: Backend, leases: Sequence[Lease], requests: Sequence[GradeRequest]
) -> Sequence[Grade | GradeFailure]:
    """The backend's answers. Raises as the backend."""
    if not telemetry.enabled():
        return await backend.judge(requests)
    batch: Attributes = {"messaging.system": "redis", "messaging.batch.message_count": len(leases)}
    judge: Attributes = {"tether.judge.kind": backend.info.kind, "tether.judge.model": backend.info.model}
    parents = [lease.traceparent for lease in leases if lease.traceparent is not None]
    with (
        telemetry.span("process judgements", Kind.CONSUMER, traceparents=parents, attributes=batch),
        telemetry.span("judge batch", Kind.CLIENT, attributes=judge) as span,
    ):
        try:
            answers = await backend.judge(requests)
        except BackendError as error:
            span.fail(type(error).__name__)
            raise
        span.set({"tether.judge.failed": sum(isinstance(answer, GradeFailure) for answer in answers)})
        return answers
