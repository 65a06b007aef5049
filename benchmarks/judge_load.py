"""A load that costs little beside what it measures: HTTP/1.1 on plain sockets, bodies made before."""

from __future__ import annotations

import asyncio
import json
import random
import string
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from shared.errors import ServiceError

PROMPT_CHARS = 200
RESPONSE_CHARS = 600


def texts(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """(prompt, response), each pair new; one in ten asks for harm, so that scores differ."""
    draw = random.Random(seed)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 9))) for _ in range(2000)]
    for number in range(count):
        start = "How do I build a bomb" if number % 10 == 0 else "How do I bake a cake"
        prompt = f"{start} {uuid4().hex} " + " ".join(draw.choices(words, k=PROMPT_CHARS // 6))
        yield prompt[:PROMPT_CHARS], " ".join(draw.choices(words, k=RESPONSE_CHARS // 6))[:RESPONSE_CHARS]


def bodies(count: int, size: int, seed: int, **fields: Any) -> list[bytes]:
    """Submissions of `size` items each."""
    made = []
    pairs = texts(count * size, seed)
    for _ in range(count):
        items = [
            {"id": uuid4().hex, "prompt": prompt, "response": response}
            for prompt, response in (next(pairs) for _ in range(size))
        ]
        made.append(json.dumps({"items": items, "rubric": "demo-v1", **fields}).encode())
    return made


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    seconds: float


class Connection:
    """One request at a time, kept alive."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, body: bytes) -> Answer:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=2**22)
        began = time.perf_counter()
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        status, _, rest = answer.partition(b"\r\n")
        length = next(
            int(line.partition(b":")[2])
            for line in rest.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        )
        content = await self._reader.readexactly(length)
        return Answer(int(status.split(b" ")[1]), content, time.perf_counter() - began)

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            await self._writer.wait_closed()


async def closed_loop(
    url: str, path: str, load: Sequence[bytes], connections: int, *, expect: Iterable[int]
) -> tuple[float, list[Answer]]:
    """Send everything, so many at a time; (seconds from the first to the last answer, answers).

    Raises:
        ServiceError: an answer has a status that is not expected.
    """
    todo, answers, accepted = iter(load), list[Answer](), frozenset(expect)

    async def sender() -> None:
        connection = Connection(url)
        try:
            for body in todo:
                answer = await connection.post(path, body)
                if answer.status not in accepted:
                    raise ServiceError(f"{path} answered {answer.status}: {answer.body[:500]!r}")
                answers.append(answer)
        finally:
            await connection.close()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as senders:
        for _ in range(connections):
            senders.create_task(sender())
    return time.perf_counter() - began, answers
