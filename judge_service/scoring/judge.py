"""Who grades the rows of a file: a running service, or a backend in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.wire import ChatMessage, FailedVerdict, ScoredVerdict


@dataclass(frozen=True)
class Item:
    id: str
    """The same again for the same text within one run, so that asking twice is judged once."""
    prompt: str | list[ChatMessage]
    response: str


class Judge(Protocol):
    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def batch_size(self) -> int: ...

    @property
    def concurrency(self) -> int:
        """Batches that it gains from having at once."""
        ...

    async def prepare(self) -> None:
        """Before the first batch.

        Raises:
            JudgeError: it is not to be trusted: it is wrong about what is known.
            JudgeUnavailable: it does not answer.
        """
        ...

    async def judge(self, batch: Sequence[Item]) -> list[ScoredVerdict | FailedVerdict]:
        """A terminal verdict an item, in the order of the batch.

        Raises:
            JudgeUnavailable: no answer within the time allowed; what was asked may be asked again.
            JudgeRefusal: it will never answer this.
        """
        ...

    async def close(self) -> None: ...
