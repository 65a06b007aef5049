"""Rows to grade, from JSONL: `{"prompt", "response"}`, or a chat `{"messages": [...]}` whose last turn is
the reply. Read lazily, so that a file may be larger than memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from shared.errors import DataError
from shared.wire import ChatMessage, content_hash

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Row:
    line: int
    """From 1."""
    prompt: str | list[ChatMessage]
    response: str
    raw: dict[str, Any]
    """As it stands in the file."""

    @property
    def hash(self) -> str:
        """`shared.wire.content_hash` of what is graded."""
        return content_hash(self.prompt, self.response)


def iter_rows(lines: Iterable[bytes]) -> Iterator[Row | DataError]:
    """Each line that is not blank: its row, or what is wrong with it and where."""
    for number, raw in enumerate(lines, start=1):
        try:
            text = (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).decode("utf-8")
            if text.strip():
                yield _row(json.loads(text, parse_constant=_no_constant), number)
        except UnicodeDecodeError as error:
            yield DataError(f"byte {error.start + 1} is not UTF-8; save the file as UTF-8", line=number)
        except RecursionError:
            yield DataError("the JSON is nested too deeply", line=number)
        except ValueError as error:
            yield DataError(f"not valid JSON ({error}); give one JSON object a line", line=number)
        except DataError as error:
            yield error


def _row(value: object, line: int) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"a JSON {_kind(value)} where an object is due", line=line)
    if "messages" in value:
        turns = _turns(value["messages"], "messages", line)
        if not turns or turns[-1].role != "assistant":
            seen = f"the {turns[-1].role}'s" if turns else "missing"
            raise DataError(f"the last turn of messages is {seen}; it must be the assistant's", line=line)
        return Row(line, turns[:-1], turns[-1].content, value)
    if "prompt" not in value or "response" not in value:
        raise DataError(
            f"neither 'messages' nor both 'prompt' and 'response'; it has {', '.join(value) or 'no key'}",
            line=line,
        )
    prompt = value["prompt"]
    return Row(
        line,
        _turns(prompt, "prompt", line) if isinstance(prompt, list) else _text(prompt, "prompt", line),
        _text(value["response"], "response", line),
        value,
    )


def _turns(value: object, where: str, line: int) -> list[ChatMessage]:
    if not isinstance(value, list):
        raise DataError(f"{where} is a JSON {_kind(value)}; a list of turns is due", line=line)
    turns = []
    for index, turn in enumerate(value):
        at = f"{where}[{index}]"
        if not isinstance(turn, dict):
            raise DataError(
                f"{at} is a JSON {_kind(turn)}; an object with role and content is due", line=line
            )
        role = turn.get("role")
        if role not in ROLES:
            raise DataError(f"{at}.role is {role!r:.60}; it must be one of {', '.join(ROLES)}", line=line)
        turns.append(ChatMessage(role=role, content=_text(turn.get("content"), f"{at}.content", line)))
    return turns


def _text(value: object, where: str, line: int) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where} is a JSON {_kind(value)}; a string is due", line=line)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half of a surrogate pair at character {error.start}", line=line
        ) from error
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _kind(value: object) -> str:
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
