"""What ends without being judged, and as what. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from judge_service.queue.items import Completion, Lease
from judge_service.worker.verdicts import unjudged_json
from shared.wire import FailureCode, ScoreKind


def hopeless(
    lease: Lease,
    now: float,
    *,
    max_deliveries: int,
    rubrics: Collection[str],
    kind: ScoreKind,
    other_kinds: Mapping[str, str],
) -> Completion | None:
    """How the item ends if no judging can help it.

    Args:
        now: unix seconds.
        rubrics: that the worker's judge can grade by.
        kind: of the scores that it gives.
        other_kinds: by group: the kind of the scores that the group has, where it is another.
    """
    code = FailureCode.SERVER_ERROR
    if lease.expires_at is not None and lease.expires_at <= now:
        code = FailureCode.EXPIRED
        message = f"it was {now - lease.expires_at:.1f} s past its expires_at when a worker took it"
    elif lease.deliveries > max_deliveries:
        message = f"given up: handed to {lease.deliveries - 1} workers, and none came to its end"
        return Completion(lease, unjudged_json(lease, code, message, now=now), dead=True)
    elif lease.rubric not in rubrics:
        message = (
            f"this worker's judge cannot grade by rubric {lease.rubric!r}; it can by"
            f" {', '.join(sorted(rubrics))}"
        )
    elif lease.group in other_kinds:
        message = (
            f"this worker's judge gives {kind.value} scores, and this group has {other_kinds[lease.group]}"
            " ones, which cannot be compared; run judges of one kind, or use another group"
        )
    else:
        return None
    return Completion(lease, unjudged_json(lease, code, message, now=now))
