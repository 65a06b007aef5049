"""A backend in this process as the one who grades: no queue, no service."""

from __future__ import annotations

import time
from collections.abc import Sequence

from judge_service.backends.base import Backend, BackendError, BackendUnavailable, GradeFailure, GradeRequest
from judge_service.scoring.judge import Item
from judge_service.verdicts import graded, judge_info
from shared.errors import JudgeUnavailable
from shared.rubrics.rubric import Rubric
from shared.wire import FailedVerdict, FailureCode, ScoredVerdict, Timings


class InProcessJudge:
    def __init__(self, backend: Backend, rubric: Rubric, *, batch_size: int) -> None:
        self._backend = backend
        self._rubric = rubric
        self._info = judge_info(backend.info, rubric)
        self.batch_size = batch_size
        self.concurrency = backend.info.concurrency
        self.name = f"{backend.info.kind} {backend.info.model}"

    async def judge(self, batch: Sequence[Item]) -> list[ScoredVerdict | FailedVerdict]:
        requests = [GradeRequest(self._rubric, item.prompt, item.response) for item in batch]
        began = time.monotonic()
        try:
            answers = await self._backend.judge(requests)
        except BackendUnavailable as error:
            raise JudgeUnavailable(f"{self.name}: {error}; the same command goes on from here") from error
        except BackendError as error:
            answers = [GradeFailure(FailureCode.SERVER_ERROR, str(error)) for _ in batch]
        timings = Timings(queue_ms=0.0, judge_ms=(time.monotonic() - began) * 1000)
        return [
            graded(item.id, answer, self._info, timings) for item, answer in zip(batch, answers, strict=True)
        ]

    async def close(self) -> None:
        await self._backend.close()
