"""Rows to grade, from JSONL: `{"prompt", "response"}`, or a chat `{"messages": [...]}` whose last turn is
the reply. Read lazily, so that a file may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from shared.errors import DataError
from shared.jsonl import check_text, json_kind, read_line
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
            value = read_line(raw, number)
            if value is not None:
                yield _row(value, number)
        except DataError as error:
            yield error


def _row(value: dict[str, object], line: int) -> Row:
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
        raise DataError(f"{where} is a JSON {json_kind(value)}; a list of turns is due", line=line)
    turns = []
    for index, turn in enumerate(value):
        at = f"{where}[{index}]"
        if not isinstance(turn, dict):
            raise DataError(
                f"{at} is a JSON {json_kind(turn)}; an object with role and content is due", line=line
            )
        role = turn.get("role")
        if role not in ROLES:
            raise DataError(f"{at}.role is {role!r:.60}; it must be one of {', '.join(ROLES)}", line=line)
        turns.append(ChatMessage(role=role, content=_text(turn.get("content"), f"{at}.content", line)))
    return turns


def _text(value: object, where: str, line: int) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where} is a JSON {json_kind(value)}; a string is due", line=line)
    check_text(value, where, line)
    return value
