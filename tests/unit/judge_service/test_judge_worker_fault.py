"""A fault of ours ends a worker, also where the cancellation that should end it is lost."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from judge_service.backends.rules import RulesBackend
from judge_service.queue.items import Lease
from judge_service.queue.streams import JudgementQueue, connect
from judge_service.worker.guard import Controls
from judge_service.worker.worker import Worker, WorkerSettings
from shared.redis_keys import JudgeKeys
from shared.rubrics.rubric import load_rubric


def test_a_fault_in_a_batch_ends_the_worker_although_a_cancellation_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = WorkerSettings(
        batch_size=1, linger_ms=0, concurrency=2, lease_s=10, max_deliveries=4, redis_deadline_s=1
    )
    lost = []

    async def work() -> None:
        queue = JudgementQueue(connect("redis://127.0.0.1:1"), JudgeKeys())
        rubrics = {"demo-v1": load_rubric("demo-v1")}
        worker = Worker(queue, RulesBackend(), rubrics, settings, Controls({}, 300, 10))
        takes = iter([[cast(Lease, object())]])

        async def take() -> list[Lease]:
            try:
                await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                # As asyncio.wait_for does before Python 3.12, when what it waits for has just come.
                lost.append(True)
            return next(takes, [])

        async def broken(*_: Any) -> None:
            raise ValueError("a fault of ours")

        monkeypatch.setattr(worker, "_take", take)
        monkeypatch.setattr(worker._judging, "handle", broken)
        monkeypatch.setattr(worker._guard, "may_take", lambda: True)
        working = asyncio.create_task(worker._work())
        done, _ = await asyncio.wait([working], timeout=5)
        if not done:
            # It hears of nothing else any more.
            worker._stopping.over.set()
        assert done, "the worker goes on taking"
        with pytest.raises(ExceptionGroup) as caught:
            await working
        assert caught.group_contains(ValueError)

    asyncio.run(work())
    assert lost
