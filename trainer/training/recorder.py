"""Rank 0's pen: events, the controller's log, the outcome."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from trainer.training.run_spec import (
    CONTROLLER_LOG,
    EVENTS_FILE,
    OUTCOME_FILE,
    CheckpointEvent,
    MessageEvent,
    MetricsEvent,
    Outcome,
)


class Recorder:
    """Appends to the run's files. On other ranks than 0 it writes nothing."""

    def __init__(self, run_dir: Path, *, writes: bool) -> None:
        self._run_dir = run_dir
        self._writes = writes
        # Line by line: whoever follows the run sees each step when it is done.
        self._events = (run_dir / EVENTS_FILE).open("a", buffering=1, encoding="utf-8") if writes else None
        self._log = None
        if writes:
            drop_half_line(run_dir / CONTROLLER_LOG)
            self._log = (run_dir / CONTROLLER_LOG).open("a", encoding="utf-8")

    def message(
        self, level: Literal["info", "warn", "error"], message: str, data: dict[str, Any] | None = None
    ) -> None:
        self._write(MessageEvent(ts=time.time(), level=level, message=message, data=data))

    def metrics(self, **values: Any) -> None:
        self.flush()  # who sees a step finds in the log what decided it
        self._write(MetricsEvent(ts=time.time(), **values))

    def checkpoint(self, step: int, path: Path, metrics: dict[str, float]) -> None:
        relative = path.relative_to(self._run_dir).as_posix()
        self._write(CheckpointEvent(ts=time.time(), step=step, path=relative, metrics=metrics))

    def controller(self, call: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(json.dumps(call, separators=(",", ":")) + "\n")

    def flush(self) -> None:
        if self._log is not None:
            self._log.flush()

    def outcome(self, outcome: Outcome) -> None:
        """Appears whole or not at all: it is how the runner tells an end from a death."""
        if not self._writes:
            return
        self.flush()
        partial = self._run_dir / (OUTCOME_FILE + ".partial")
        partial.write_text(outcome.model_dump_json(indent=2), encoding="utf-8")
        partial.replace(self._run_dir / OUTCOME_FILE)

    def _write(self, event: BaseModel) -> None:
        if self._events is not None:
            self._events.write(event.model_dump_json() + "\n")


def drop_half_line(path: Path) -> None:
    """Cuts what a killed run left of a line, so that the next run's first line stands by itself."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, 2)
        while end > 0:
            begin = max(0, end - 65536)
            file.seek(begin)
            at = file.read(end - begin).rfind(b"\n")
            if at >= 0:
                file.truncate(begin + at + 1)
                return
            end = begin
        file.truncate(0)
