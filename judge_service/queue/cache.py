"""Verdicts of text that was judged before: by the same judge, by the same rubric, for the same tenant.

Inside the queue an id is `tenant/id`; where there are no tenants it has no slash.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence

from pydantic import ValidationError

from judge_service.queue.items import Completion, Lease
from judge_service.queue.streams import JudgementQueue
from shared.wire import JudgeInfo, ScoredVerdict, Timings


class VerdictCache:
    """Every method of one that is off finds and keeps nothing."""

    def __init__(self, queue: JudgementQueue, judges: Mapping[str, JudgeInfo], *, on: bool) -> None:
        """`judges`: by the rubric's name, as their verdicts say it."""
        self._queue = queue
        self._judges = {rubric: _digest(judge) for rubric, judge in judges.items()} if on else {}

    def key(self, lease: Lease) -> str:
        """Where the verdict of this text is kept; empty: nowhere."""
        judge = self._judges.get(lease.rubric)
        if judge is None or not lease.content_hash:
            return ""
        tenant, _, _ = lease.id.rpartition("/")
        return self._queue.keys.cached(tenant, judge, lease.content_hash)

    async def completions(self, leases: Sequence[Lease]) -> list[Completion | None]:
        """In the order of `leases`: how each ends whose text was judged before. One look for all."""
        keys = [self.key(lease) for lease in leases]
        if not any(keys):
            return [None] * len(leases)
        found = await self._queue.cached(keys)
        now = time.time()
        return [
            _hit(lease, verdict, now) if verdict is not None else None
            for lease, verdict in zip(leases, found, strict=True)
        ]

    async def forget(self, leases: Iterable[Lease]) -> None:
        """Drop what was kept of these: the judge has turned out not to be trusted with them."""
        await self._queue.forget_cached([key for lease in leases if (key := self.key(lease))])


def _digest(judge: JudgeInfo) -> str:
    """Kind, model, revision, score kind, rubric and the rubric's hash."""
    return hashlib.sha256(judge.model_dump_json().encode()).hexdigest()[:16]


def _hit(lease: Lease, stored: bytes, now: float) -> Completion | None:
    try:
        verdict = ScoredVerdict.model_validate_json(stored)
    except ValidationError:
        # Written by another version. It is judged anew.
        return None
    if lease.rationale and verdict.rationale is None:
        return None
    update = {
        "id": lease.id.rpartition("/")[2],
        "cached": True,
        "rationale": verdict.rationale if lease.rationale else None,
        "timings": Timings(queue_ms=max(0.0, now - lease.submitted_at) * 1000, judge_ms=0.0),
    }
    return Completion(lease, verdict.model_copy(update=update).model_dump_json())
