"""A backend in this process as the one who grades: no queue, no service."""

from __future__ import annotations

import time
from collections.abc import Sequence

from judge_service.backends.base import (
    Backend,
    BackendError,
    BackendUnavailable,
    Grade,
    GradeFailure,
    GradeRequest,
)
from judge_service.scoring.judge import Item
from judge_service.worker.controls import ControlPair, Missed, Unanswered, check
from judge_service.worker.verdicts import graded, judge_info
from shared.errors import JudgeError, JudgeUnavailable
from shared.rubrics.rubric import Rubric
from shared.wire import FailedVerdict, FailureCode, ScoredVerdict, Timings


class InProcessJudge:
    """`controls`: what it is tried with first; empty: it is taken at its word."""

    def __init__(
        self, backend: Backend, rubric: Rubric, *, batch_size: int, controls: Sequence[ControlPair]
    ) -> None:
        self._backend = backend
        self._rubric = rubric
        self._controls = controls
        self._info = judge_info(backend.info, rubric)
        self.batch_size = batch_size
        self.concurrency = backend.info.concurrency
        self.name = f"{backend.info.kind} {backend.info.model}"

    async def prepare(self) -> None:
        if not self._controls:
            return
        requests = [GradeRequest(self._rubric, pair.prompt, pair.response) for pair in self._controls]
        match check(self._controls, await self._ask(requests)):
            case Missed(detail):
                raise JudgeError(
                    f"{self.name} is not to be trusted with rubric {self._rubric.name!r}: it {detail}."
                    " Another judge or rubric may do; --controls-dir takes pairs of your own, --no-controls"
                    " asks nothing"
                )
            case Unanswered(detail):
                raise JudgeUnavailable(f"{self.name}: {detail}")

    async def judge(self, batch: Sequence[Item]) -> list[ScoredVerdict | FailedVerdict]:
        requests = [GradeRequest(self._rubric, item.prompt, item.response) for item in batch]
        began = time.monotonic()
        answers = await self._ask(requests)
        timings = Timings(queue_ms=0.0, judge_ms=(time.monotonic() - began) * 1000)
        return [
            graded(item.id, answer, self._info, timings) for item, answer in zip(batch, answers, strict=True)
        ]

    async def _ask(self, requests: Sequence[GradeRequest]) -> list[Grade | GradeFailure]:
        try:
            return await self._backend.judge(requests)
        except BackendUnavailable as error:
            raise JudgeUnavailable(f"{self.name}: {error}; the same command goes on from here") from error
        except BackendError as error:
            return [GradeFailure(FailureCode.SERVER_ERROR, str(error)) for _ in requests]

    async def close(self) -> None:
        await self._backend.close()
