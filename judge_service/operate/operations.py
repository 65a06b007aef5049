"""What an operator sees and does: how the service stands, draining it, its dead letters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from judge_service.queue.items import Admitted, Conflict, NewItem, QueueFull
from judge_service.queue.streams import GROUP, JudgementQueue
from judge_service.state import ServiceState, read_state
from judge_service.tenants.names import public
from judge_service.worker.holds import ALL, Hold, Holds
from shared.errors import ServiceError
from shared.wire import Priority

LOOK_S = 0.2
MAX_ID = 200


@dataclass(frozen=True)
class Status:
    state: ServiceState
    holds: Mapping[str, Hold]
    """By worker, or `*` for all."""

    def as_json(self) -> dict[str, Any]:
        return {
            "queue": {
                priority: {
                    "depth": stream.depth,
                    "in_flight": stream.inflight,
                    "oldest_age_s": round(stream.oldest_age_s, 3),
                }
                for priority, stream in self.state.streams.items()
            },
            "workers": list(self.state.workers),
            "holds": {
                name: {"reason": hold.reason, "since": hold.since} for name, hold in self.holds.items()
            },
            "dead_letters": self.state.dead_letters,
        }


async def read_status(queue: JudgementQueue) -> Status:
    """Raises redis.RedisError."""
    state = await read_state(queue.redis, queue.keys, queue.limit)
    return Status(state, await Holds(queue.redis, queue.keys).placed())


@dataclass(frozen=True)
class Draining:
    taking: tuple[str, ...]
    """Workers that have not heard yet."""
    in_hand: int
    """Items that the workers to be drained still hold."""

    @property
    def done(self) -> bool:
        return not self.taking and self.in_hand == 0


async def drain(queue: JudgementQueue, worker: str, reason: str, tell: Callable[[Draining], None]) -> None:
    """Let one worker, or `ALL`, take nothing more, and wait until they hold nothing.

    What was given back, or was a dead worker's, waits in the queue for when the hold is lifted.

    Raises:
        ServiceError: there is no such worker.
        redis.RedisError: Redis is away. The hold, once placed, stays.
    """
    alive = {str(info.get("worker")) for info in await queue.workers()}
    if worker != ALL and worker not in alive:
        names = ", ".join(sorted(alive)) or "none"
        raise ServiceError(f"no worker {worker!r} is alive; there are: {names}")
    await Holds(queue.redis, queue.keys).place(worker, reason)
    while True:
        now = await _draining(queue, worker)
        tell(now)
        if now.done:
            return
        await asyncio.sleep(LOOK_S)


async def _draining(queue: JudgementQueue, worker: str) -> Draining:
    infos = [info for info in await queue.workers() if worker in (ALL, info.get("worker"))]
    taking = [str(info["worker"]) for info in infos if info["breaker"]["reason"] != "operator"]
    names = {str(info["worker"]) for info in infos}
    in_hand = 0
    for stream in queue.keys.streams():
        try:
            consumers: Any = await queue.redis.xinfo_consumers(stream, GROUP)
        except ResponseError as error:
            if "NOGROUP" not in str(error) and "no such key" not in str(error):
                raise
            continue
        in_hand += sum(int(c["pending"]) for c in consumers if c["name"].decode() in names)
    return Draining(tuple(taking), in_hand)


@dataclass(frozen=True)
class DeadLetter:
    """An item that was handed out too often and came to no end."""

    letter: str
    """Its place among the dead letters."""
    id: str
    """As the queue knows it."""
    since: float
    """Unix seconds at which it was given up."""
    rubric: str
    group: str
    stream: str
    rationale: bool
    fingerprint: str
    body: str
    """Its text, as JSON."""
    message: str
    """Why it was given up."""

    @property
    def retry_id(self) -> str:
        """The same for the same letter, so that a retry that broke off may be made again."""
        suffix = f"@retry-{self.letter}"
        scope, slash, name = self.id.rpartition("/")
        return f"{scope}{slash}{name[: MAX_ID - len(suffix)]}{suffix}"

    def as_json(self, *, text: bool) -> dict[str, Any]:
        shown = {
            "id": self.id,
            "given_up_at": self.since,
            "rubric": self.rubric,
            "group": self.group or None,
            "message": self.message,
            "retry_id": public(self.retry_id),
        }
        return {**shown, **json.loads(self.body)} if text else shown


async def dead_letters(queue: JudgementQueue) -> list[DeadLetter]:
    """The oldest first. Raises redis.RedisError."""
    entries: Any = await queue.redis.xrange(queue.keys.dead)
    letters = []
    for entry, raw in entries:
        values = {name.decode(): value.decode() for name, value in raw.items()}
        error = json.loads(values["verdict"]).get("error") or {}
        letters.append(
            DeadLetter(
                letter=entry.decode(),
                id=values["id"],
                since=int(entry.partition(b"-")[0]) / 1000,
                rubric=values["rubric"],
                group=values["group"],
                stream=values["stream"],
                rationale=values["rationale"] == "1",
                fingerprint=values["fingerprint"],
                body=values["body"],
                message=str(error.get("message", "")),
            )
        )
    return letters


async def retry(queue: JudgementQueue, letter: DeadLetter) -> str:
    """Judge it anew under a new id, which names the old one; the new id, as a client of it reads it.

    Raises:
        ServiceError: the queue is full.
        redis.RedisError: Redis is away; made again it is the same retry.
    """
    priority = next(p for p in Priority if queue.keys.stream(p) == letter.stream)
    item = NewItem(letter.retry_id, letter.fingerprint, letter.body.encode())
    admission = await queue.submit(
        [item],
        rubric=letter.rubric,
        priority=priority,
        group=letter.group or None,
        rationale=letter.rationale,
    )
    match admission:
        case QueueFull(depth, limit):
            raise ServiceError(
                f"the queue holds {depth} of {limit} items; {letter.id} was not retried, try later"
            )
        case Conflict():
            raise ServiceError(f"the id {letter.retry_id} is in use for another text; it was not retried")
        case Admitted():
            await queue.redis.xdel(queue.keys.dead, letter.letter)
    return public(letter.retry_id)
