"""Reading what a run writes while it writes it."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from trainer.jobs.records import Ingested, NewCheckpoint, NewEvent, Progress
from trainer.training.run_spec import RUN_EVENT, CheckpointEvent, MessageEvent, MetricsEvent

AT_ONCE = 4 * 1024 * 1024
"""Bytes of one reading."""


def read_events(path: Path, offset: int) -> Ingested:
    """The whole lines after `offset` bytes. The last line may be half written: it is left for later."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            chunk = file.read(AT_ONCE)
    except FileNotFoundError:
        chunk = b""
    whole = chunk[: chunk.rfind(b"\n") + 1]
    events: list[NewEvent] = []
    checkpoints: list[NewCheckpoint] = []
    progress: Progress | None = None
    for line in whole.splitlines():
        match _parse(line):
            case NewEvent() as event:
                events.append(event)
            case MessageEvent() as said:
                events.append(
                    NewEvent(created_at=said.ts, level=said.level, message=said.message, data=said.data)
                )
            case MetricsEvent() as step:
                events.append(_metrics(step))
                progress = Progress(step.step, step.steps, step.tokens, step.ts + step.eta_s)
            case CheckpointEvent() as saved:
                checkpoints.append(NewCheckpoint(saved.ts, saved.step, saved.path, saved.metrics))
                events.append(
                    NewEvent(
                        created_at=saved.ts,
                        level="info",
                        message=f"Checkpoint created at step {saved.step}",
                        data={"step": saved.step},
                    )
                )
    return Ingested(tuple(events), tuple(checkpoints), progress, offset + len(whole))


def last_lines(path: Path, *, lines: int = 15, most_bytes: int = 4000) -> str:
    """The end of a log, for an error's message."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - most_bytes))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.strip().splitlines()[-lines:])


def _parse(line: bytes) -> NewEvent | MessageEvent | MetricsEvent | CheckpointEvent:
    try:
        return RUN_EVENT.validate_json(line)
    except ValidationError as error:
        shown = line[:200].decode("utf-8", "replace")
        return NewEvent(
            created_at=0.0,
            level="warn",
            message=f"The run wrote an event that cannot be read: {error.errors()[0]['msg']}",
            data={"line": shown},
        )


def _metrics(step: MetricsEvent) -> NewEvent:
    return NewEvent(
        created_at=step.ts,
        level="info",
        message=f"Step {step.step}/{step.steps}: training loss={step.loss:.2f}",
        data=step.model_dump(mode="json", exclude={"kind", "ts"}),
        step=step.step,
    )
