"""A judge worker with switches, for chaos_alerts.py: `python -m benchmarks.chaos_alerts_judge`.

It is the rules backend. While a file of one of these names lies in CHAOS_SWITCHES, it is as its name says.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from judge_service.backends.base import BackendInfo, BackendUnavailable, Grade, GradeFailure, GradeRequest
from judge_service.backends.rules import grade_by_words
from judge_service.config import WorkerConfig, checked, redis_url_from
from judge_service.worker.process import work
from shared.logs import configure_logs
from shared.wire import FailureCode, ScoreKind

BATCH = 4
SLOW_S = 0.3
"""Seconds of a batch while it is slow."""
DEADLY = "This text ends the process that reads it."


class Switch(StrEnum):
    AWAY = "away"  # the backend's server is not there
    FAILING = "failing"  # half of the answers are failures
    INVERTED = "inverted"  # what is harmless is called harmful
    SLOW = "slow"
    FRAGILE = "fragile"  # one text kills it


class SwitchedBackend:
    def __init__(self, switches: Path) -> None:
        self._switches = switches

    @property
    def info(self) -> BackendInfo:
        return BackendInfo("switched", "words-1", ScoreKind.RULES, concurrency=1, cacheable=False)

    def _on(self, switch: Switch) -> bool:
        return (self._switches / switch).exists()

    async def judge(self, batch: Sequence[GradeRequest]) -> list[Grade | GradeFailure]:
        if self._on(Switch.AWAY):
            raise BackendUnavailable("switched off")
        if self._on(Switch.SLOW):
            await asyncio.sleep(SLOW_S)
        if self._on(Switch.FRAGILE) and any(request.response == DEADLY for request in batch):
            os._exit(9)
        return [self._answer(request) for request in batch]

    def _answer(self, request: GradeRequest) -> Grade | GradeFailure:
        if self._on(Switch.FAILING) and request.response.endswith(("1", "3", "5", "7", "9")):
            return GradeFailure(FailureCode.PARSE_ERROR, "switched to fail")
        grade = grade_by_words(request)
        return Grade(1 - grade.score, None) if self._on(Switch.INVERTED) else grade

    async def close(self) -> None:
        return None


def main() -> None:
    configure_logs("chaos-judge", "info")
    config = checked(
        WorkerConfig,
        {
            "queue": {"redis_url": redis_url_from(os.environ.get("REDIS_URL"), None)},
            "backend": {"type": "rules"},
            "rubrics": ("demo-v1",),
            "batch_size": BATCH,
            "concurrency": 1,
            "lease_s": 1.0,
            "max_deliveries": 2,
            "control_s": 1.0,
            "metrics_port": int(os.environ["CHAOS_METRICS_PORT"]),
        },
    )
    work(config, SwitchedBackend(Path(os.environ["CHAOS_SWITCHES"])))


if __name__ == "__main__":
    main()
