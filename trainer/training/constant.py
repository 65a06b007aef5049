"""The same beta for every example: plain fine-tuning and the fixed KL."""

from __future__ import annotations

import time
from collections.abc import Callable

from trainer.safety.decision import Action
from trainer.training.distributed import Collective, Signal
from trainer.training.guidance import Guidance


class ConstantBeta:
    """SFT (0) and fixed KL."""

    def __init__(self, beta: float, collective: Collective, stopping: Callable[[], bool]) -> None:
        self._beta = beta
        self._collective = collective
        self._stopping = stopping

    def start(self, step: int) -> None:
        """Nothing to send."""

    def guide(self, step: int, rows: tuple[int, ...]) -> Guidance:
        signal = Signal.STOP if self._stopping() else Signal.GO_ON
        heard = self._collective.exchange([], now=time.monotonic(), signal=signal)
        return Guidance(
            action=Action.TRAIN,
            betas=(self._beta,) * len(rows),
            stop=heard.signal is Signal.STOP,
            risk=self._beta,
            staleness=None,
            overdue=False,
            wait_s=0.0,
            generate_s=0.0,
            bases={},
        )

    ahead = None
    """No probe asks the reference before the step."""

    def state(self, step: int) -> None:
        return None

    def close(self) -> None:
        """Nothing is open."""
