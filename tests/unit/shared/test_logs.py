from __future__ import annotations

import json
import logging

import pytest

from shared.errors import ConfigError
from shared.logs import JsonFormatter, configure_logs, fields


def formatted(message: str, *args: object, **extra: object) -> dict[str, object]:
    record = logging.LogRecord("a.b", logging.WARNING, __file__, 1, message, args, None)
    record.__dict__.update(extra)
    line = JsonFormatter("service").format(record)
    assert "\n" not in line
    loaded: dict[str, object] = json.loads(line)
    return loaded


def test_fields_stand_beside_the_message() -> None:
    line = formatted("took %d\nitems", 3, **fields(items=3, ids=["a"], odd=object))
    assert line["message"] == "took 3\nitems"
    assert (line["level"], line["service"], line["logger"]) == ("warning", "service", "a.b")
    assert (line["items"], line["ids"]) == (3, ["a"])
    assert str(line["time"]).endswith("+00:00")


def test_an_unknown_level_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown log level 'loud'"):
        configure_logs("service", "loud")
