"""A judge worker whose scores tell what they are of: `python -m benchmarks.chaos_judge`, for chaos.py.

A score is the text's own number in [0, 0.9], plus up to 0.05 drawn anew at each attempt: one that belongs to
another text is seen, and so is a second judging of the same text.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Sequence

from judge_service.backends.base import BackendInfo, Grade, GradeFailure, GradeRequest
from judge_service.config import WorkerConfig, checked, redis_url_from
from judge_service.worker.controls import load_controls
from judge_service.worker.process import work
from shared.logs import configure_logs
from shared.wire import ScoreKind

RUBRIC = "demo-v1"
TEXTS_SHARE = 0.9
ATTEMPTS_SHARE = 0.05


def score_of(response: str) -> float:
    """The text's own part, in [0, 0.9]."""
    digest = hashlib.sha256(response.encode()).digest()
    return TEXTS_SHARE * int.from_bytes(digest[:6], "big") / 2**48


class ChaosBackend:
    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._attempts = random.Random(os.urandom(16))
        pairs = load_controls(RUBRIC, ScoreKind.RULES)
        self._controls = {pair.response: (pair.at_least + pair.at_most) / 2 for pair in pairs}

    @property
    def info(self) -> BackendInfo:
        return BackendInfo("chaos", "attempts-1", ScoreKind.RULES, concurrency=2, cacheable=False)

    async def judge(self, batch: Sequence[GradeRequest]) -> list[Grade | GradeFailure]:
        await asyncio.sleep(self._delay_s)
        return [Grade(self._score(request.response), None) for request in batch]

    def _score(self, response: str) -> float:
        known = self._controls.get(response)
        if known is not None:
            return known
        return score_of(response) + ATTEMPTS_SHARE * self._attempts.random()

    async def close(self) -> None:
        return None


def main() -> None:
    configure_logs("chaos-judge", "warning")
    config = checked(
        WorkerConfig,
        {
            "queue": {"redis_url": redis_url_from(os.environ.get("REDIS_URL"), None)},
            "backend": {"type": "rules"},
            "rubrics": (RUBRIC,),
            "batch_size": 16,
            "lease_s": 2.0,
            "max_deliveries": 10,
            "control_s": 5.0,
        },
    )
    work(config, ChaosBackend(float(os.environ["CHAOS_DELAY_S"])))


if __name__ == "__main__":
    main()
