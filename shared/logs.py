"""Logs: one JSON object a line on stderr. They hold ids, hashes and counts, never graded or trained text."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType

from shared.errors import ConfigError, TetherError


class JsonFormatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": said(record),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line.update(fields)
        if record.exc_info:
            line["exception"] = describe(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=str)


def said(record: logging.LogRecord) -> str:
    message = record.getMessage()
    # Its further lines show the exception that nobody asked for, with its words.
    return message.partition("\n")[0] if record.name == "asyncio" else message


def describe(error: BaseException | None) -> str:
    """Where an exception came from, and its chain. Other people's messages are left out: they repeat
    values, and a value may be graded text."""
    lines: list[str] = []
    while error is not None:
        own = isinstance(error, TetherError | OSError)
        lines += traceback.format_tb(error.__traceback__)
        lines.append(f"{type(error).__qualname__}{f': {error}' if own else ''}\n")
        if isinstance(error, BaseExceptionGroup):
            lines += [describe(inner) for inner in error.exceptions]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if error is not None:
            lines.append("which came of:\n")
    return "".join(lines)


def configure_logs(service: str, level: str = "info") -> None:
    """Send everything that this process logs to stderr as JSON lines.

    Raises:
        ConfigError: there is no such level.
    """
    if level.upper() not in logging.getLevelNamesMapping():
        raise ConfigError(f"unknown log level {level!r}; use debug, info, warning or error")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)

    def on_fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            logging.getLogger(service).critical("ended by a fault", exc_info=(kind, error, trace))

    sys.excepthook = on_fault


def fields(**values: object) -> dict[str, object]:
    """`logger.info("judged a batch", extra=fields(items=32))`: the values stand beside the message."""
    return {"fields": values}
