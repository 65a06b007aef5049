"""`Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header-07): a submission is admitted once.

What is kept under a key is the ids that the submission got, so a repeat answers about the same
judgements, as they stand by then. The ids that the service makes follow from the key, so that even a
process that dies between admission and its note leaves nothing to be judged twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from judge_service.api.problem import ApiProblem
from shared.redis_keys import JudgeKeys

IN_FLIGHT_S = 60
"""A process that died while it admitted blocks its key for so long."""

MAX_KEY_CHARS = 255


@dataclass(frozen=True)
class First:
    """Nobody has used this key: go on, then `finish` or `release`."""


@dataclass(frozen=True)
class Repeat:
    ids: tuple[str, ...]
    """Public ids that the first submission got."""


def header_key(header: str | None) -> str | None:
    """The key in an Idempotency-Key header; None where there is none.

    The draft writes a string in double quotes; clients also send it bare.

    Raises:
        ApiProblem: 400 where it is empty, too long, or not visible ASCII.
    """
    if header is None:
        return None
    key = header.strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not key or len(key) > MAX_KEY_CHARS or not (key.isascii() and key.isprintable()):
        raise ApiProblem(
            400, f"the Idempotency-Key header must be 1 to {MAX_KEY_CHARS} printable ASCII characters"
        )
    return key


def made_id(key: str, position: int) -> str:
    """The id of an item that came without one, under this (scoped) key."""
    return "jdg_" + hashlib.sha256(f"{key}\0{position}".encode()).hexdigest()[:32]


class Once:
    def __init__(self, redis: Redis, keys: JudgeKeys, *, keep_s: int) -> None:
        self._redis = redis
        self._keys = keys
        self._keep_s = keep_s

    async def begin(self, key: str, body: bytes) -> First | Repeat:
        """`key` is scoped by tenant.

        Raises:
            ApiProblem: 422 where the key was used with another body; 409 while the first is in flight.
        """
        fingerprint = hashlib.sha256(body).hexdigest()
        note = json.dumps({"body": fingerprint, "ids": None})
        name = self._keys.once(key)
        while not await self._redis.set(name, note, nx=True, ex=IN_FLIGHT_S):
            stored = await self._redis.get(name)
            if stored is None:
                continue  # Its time was up between the two calls.
            known = json.loads(stored)
            if known["body"] != fingerprint:
                raise ApiProblem(
                    422, "this Idempotency-Key was used before with another body; use a new key for a new one"
                )
            if known["ids"] is None:
                raise ApiProblem(
                    409,
                    "a request with this Idempotency-Key is being admitted; send it again shortly",
                    headers={"Retry-After": "1"},
                )
            return Repeat(tuple(known["ids"]))
        return First()

    async def finish(self, key: str, body: bytes, ids: Sequence[str]) -> None:
        note = json.dumps({"body": hashlib.sha256(body).hexdigest(), "ids": list(ids)})
        await self._redis.set(self._keys.once(key), note, ex=self._keep_s)

    async def release(self, key: str) -> None:
        """Nothing was admitted: the same key may be tried again."""
        await self._redis.delete(self._keys.once(key))
