"""One line of a JSONL file that a user gives: what is wrong with it is said with its number."""

from __future__ import annotations

import codecs
import json
from typing import NoReturn

from shared.errors import DataError


def read_line(raw: bytes, line: int) -> dict[str, object] | None:
    """The line's object; None where it is blank. `line` counts from 1.

    Raises:
        DataError: it is not UTF-8, not JSON (NaN is not), nested too deeply, or no object.
    """
    if line == 1:
        raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte {error.start + 1} is not UTF-8 ({error.reason}); save the file as UTF-8", line=line
        ) from error
    if not text.strip():
        return None
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise DataError("the JSON is nested too deeply", line=line) from error
    except ValueError as error:
        raise DataError(
            f"not valid JSON ({error}); the file must be JSONL, one JSON object a line", line=line
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"a JSON {json_kind(value)} where an object is due", line=line)
    return value


def check_text(text: str, where: str, line: int) -> None:
    """Raises DataError for half of a surrogate pair, which JSON can spell and nothing can encode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half of a surrogate pair at character {error.start}", line=line
        ) from error


def json_kind(value: object) -> str:
    """As JSON calls it."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "list"
        case _:
            return "object"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
