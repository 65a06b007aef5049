"""What goes through the queue: items on their way in, leases on them, and how each stands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic_core import to_json

from shared.wire import ChatMessage, JudgementItem, content_hash


@dataclass(frozen=True, slots=True)
class NewItem:
    id: str
    fingerprint: str
    """Same id and same fingerprint: the same judgement. The text's hash, a colon, the rubric's name."""
    body: bytes
    """JSON of prompt and response."""


def new_item(judgement_id: str, item: JudgementItem, rubric: str) -> NewItem:
    return NewItem(
        id=judgement_id,
        fingerprint=f"{content_hash(item.prompt, item.response)}:{rubric}",
        body=to_json({"prompt": item.prompt, "response": item.response}),
    )


@dataclass(frozen=True, slots=True)
class Submission:
    """Items that are admitted together or not at all."""

    items: Sequence[NewItem]
    rubric: str
    stream: int
    """Index of the priority's stream."""
    expires_at: float | None = None
    group: str | None = None
    rationale: bool = False
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    verdicts: tuple[bytes | None, ...]
    """In the order of the batch: the JSON of those that had one already."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """These ids were used before, with other text or another rubric. Nothing was admitted."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QueueFull:
    """Nothing was admitted."""

    depth: int
    limit: int


Admission = Admitted | Conflict | QueueFull


@dataclass(frozen=True, slots=True)
class Terminal:
    verdict: bytes
    """JSON of a `shared.wire.Verdict`."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Queued or in flight."""


@dataclass(frozen=True, slots=True)
class Gone:
    """It had a verdict, whose time was up. Sent again, it is judged again."""

    until: float
    """Unix seconds by Redis's clock until which it could be read."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Never submitted, or gone for so long that nothing of it is left, or Redis lost it."""


Found = Terminal | Waiting | Gone | Unknown


@dataclass(frozen=True, slots=True)
class Lease:
    """An item that this worker holds, as long as it keeps it alive."""

    id: str
    stream: str
    entry: str
    rubric: str
    body: str
    group: str
    submitted_at: float
    """Unix seconds by Redis's clock."""
    expires_at: float | None
    deliveries: int
    """Times that it was handed to a worker, this one included."""
    content_hash: str = ""
    """`shared.wire.content_hash` of its text."""
    rationale: bool = False
    """The client asked for the judge's reasons."""
    traceparent: str | None = None
    """Of the request that submitted it (W3C trace context)."""

    def text(self) -> tuple[str | list[ChatMessage], str]:
        """(prompt, response)."""
        raw = json.loads(self.body)
        prompt = raw["prompt"]
        if isinstance(prompt, str):
            return prompt, raw["response"]
        # It was validated when it was submitted.
        return [ChatMessage.model_construct(**turn) for turn in prompt], raw["response"]


@dataclass(frozen=True, slots=True)
class Fetched:
    leases: list[Lease]
    dropped: int
    """Items met on the way whose time was up; they have their verdict, `failed: expired`."""


@dataclass(frozen=True, slots=True)
class Completion:
    lease: Lease
    verdict: str
    """JSON of a `shared.wire.Verdict`."""
    dead: bool = False
    """Keep its text among the dead letters."""
    cache_key: str = ""
    """Keep the verdict for the same text under this key; empty: do not."""


def entry_time(entry: bytes) -> float:
    """An entry's id begins with the milliseconds at which it was added."""
    return int(entry.partition(b"-")[0]) / 1000


def lease_of(stream: bytes, entry: bytes, values: Sequence[bytes], deliveries: int = 1) -> Lease:
    """`values`: of an entry's fields, in the order in which lua/submit.lua writes them."""
    expires_at, judgement_id, fingerprint, body, rubric, group, rationale, traceparent = values
    return Lease(
        id=judgement_id.decode(),
        stream=stream.decode(),
        entry=entry.decode(),
        rubric=rubric.decode(),
        body=body.decode(),
        group=group.decode(),
        submitted_at=entry_time(entry),
        expires_at=float(expires_at) if expires_at else None,
        deliveries=deliveries,
        content_hash=fingerprint.partition(b":")[0].decode(),
        rationale=bool(rationale),
        traceparent=traceparent.decode() or None,
    )
