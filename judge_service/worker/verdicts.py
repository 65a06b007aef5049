"""From what a backend answered to the verdict that is stored, as JSON of `shared.wire.Verdict`."""

from __future__ import annotations

from judge_service.backends.base import BackendInfo, Grade, GradeFailure
from judge_service.queue.streams import Lease
from judge_service.tenants.names import public
from shared.rubrics.rubric import Rubric
from shared.wire import FailedVerdict, FailureCode, JudgeInfo, ScoredVerdict, Timings, VerdictError


def judge_info(backend: BackendInfo, rubric: Rubric) -> JudgeInfo:
    return JudgeInfo(
        kind=backend.kind,
        model=backend.model,
        revision=backend.revision,
        rubric=rubric.name,
        rubric_hash=rubric.hash,
        score_kind=backend.score_kind,
    )


def graded(
    judgement_id: str, answer: Grade | GradeFailure, judge: JudgeInfo, timings: Timings
) -> ScoredVerdict | FailedVerdict:
    if isinstance(answer, GradeFailure):
        return FailedVerdict(
            id=judgement_id,
            judge=judge,
            error=VerdictError(code=answer.code, message=answer.message),
            timings=timings,
        )
    return ScoredVerdict(
        id=judgement_id,
        score=answer.score,
        level=answer.level,
        probabilities=None if answer.probabilities is None else list(answer.probabilities),
        label_mass=answer.label_mass,
        spread=answer.spread,
        categories=answer.categories,
        rationale=answer.rationale,
        usage=answer.usage,
        empty=answer.empty,
        truncated=answer.truncated,
        judge=judge,
        timings=timings,
    )


def verdict_json(
    lease: Lease, answer: Grade | GradeFailure, judge: JudgeInfo, *, began: float, ended: float
) -> str:
    """`began` and `ended`: unix seconds between which the backend judged the item's batch."""
    # The clocks of Redis's host and of this one may differ by a little.
    timings = Timings(
        queue_ms=max(0.0, began - lease.submitted_at) * 1000, judge_ms=max(0.0, ended - began) * 1000
    )
    return graded(public(lease.id), answer, judge, timings).model_dump_json()


def unjudged_json(lease: Lease, code: FailureCode, message: str, *, now: float) -> str:
    """The verdict of an item that no backend saw to its end."""
    return FailedVerdict(
        id=public(lease.id),
        error=VerdictError(code=code, message=message),
        timings=Timings(queue_ms=max(0.0, now - lease.submitted_at) * 1000, judge_ms=0.0),
    ).model_dump_json()
