"""Many small calls as few larger ones: what arrives while a call is under way goes together in the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Coalescer(Generic[A, B]):
    """`await coalescer(one)` is `(await call([..., one, ...]))` at its place.

    `call` answers to each in order. What it raises reaches all that went with it. The first of a burst does
    not wait for more.
    """

    def __init__(
        self, call: Callable[[list[A]], Coroutine[Any, Any, list[B]]], size: Callable[[A], int], most: int
    ) -> None:
        """`most`: the sizes that go in one call together, unless one alone is larger."""
        self._call = call
        self._size = size
        self._most = most
        self._waiting: deque[tuple[A, asyncio.Future[B]]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, one: A) -> B:
        future: asyncio.Future[B] = asyncio.get_running_loop().create_future()
        self._waiting.append((one, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = self._next()
                # As a task, whose error is a value here.
                [call], _ = await asyncio.wait([asyncio.create_task(self._call([one for one, _ in batch]))])
                _settle(call, [future for _, future in batch])
        finally:
            self._running = None

    def _next(self) -> list[tuple[A, asyncio.Future[B]]]:
        batch = [self._waiting.popleft()]
        size = self._size(batch[0][0])
        while self._waiting and (size := size + self._size(self._waiting[0][0])) <= self._most:
            batch.append(self._waiting.popleft())
        return batch


def _settle(call: asyncio.Task[list[B]], futures: list[asyncio.Future[B]]) -> None:
    error = asyncio.CancelledError() if call.cancelled() else call.exception()
    answers = [] if error else call.result()
    for index, future in enumerate(futures):
        # Who waited may have gone.
        if future.done():
            continue
        if error:
            future.set_exception(error)
        else:
            future.set_result(answers[index])
