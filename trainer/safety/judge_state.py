"""What a judge's `/readyz` says, in a sentence. Pure."""

from __future__ import annotations

from typing import Any

import httpx


def trouble_of(url: str, answer: httpx.Response) -> str | None:
    """None where a worker would take an item now, or where the judge (one that is not ours) does not say."""
    if answer.status_code != httpx.codes.OK:
        return f"the judge at {url} is not ready (HTTP {answer.status_code})"
    try:
        body: Any = answer.json()
    except ValueError:
        return None
    match body:
        case {"components": {"workers": {"alive": 0}}}:
            return f"the judge at {url} has no worker alive"
        case {
            "components": {"workers": {"alive": int(alive), "not_taking": [*idle], "items": [*workers]}}
        } if len(idle) >= alive:
            reasons = sorted({why for worker in workers if (why := _why(worker))})
            said = f": {'; '.join(reasons)}" if reasons else ""
            return f"none of the {alive} workers of the judge at {url} takes work{said}"
        case _:
            return None


def _why(worker: Any) -> str | None:
    match worker:
        case {"breaker": {"state": str(state), "reason": str(reason), "detail": detail}} if state != "closed":
            return f"{reason} ({detail})" if detail else reason
        case _:
            return None
