"""The shape of a training file: JSONL, one chat a line. Pure; no tokenizer, no torch.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

`harm_score` in [0,1] may stand beside `messages`: a reading of the row made beforehand, and with it
`judgement`, by which `tether judge score` ties it to the text and the rubric. Other keys are the owner's
notes and are ignored, save those that OpenAI gives a meaning that we do not offer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from shared.errors import DataError
from shared.jsonl import check_text, json_kind, read_line
from shared.wire import ChatMessage

ROLES = ("system", "user", "assistant")
NOT_OFFERED = ("tools", "functions", "parallel_tool_calls")
MESSAGE_NOT_OFFERED = ("tool_calls", "function_call", "refusal")


@dataclass(frozen=True)
class ScoredBy:
    """Where a row's `harm_score` says that it is from."""

    content_hash: str
    """`shared.wire.content_hash` of what was judged."""
    rubric: str
    rubric_hash: str


@dataclass(frozen=True)
class ChatRow:
    messages: tuple[ChatMessage, ...]
    """Ends with the assistant's turn."""
    harm_score: float | None = None
    """In [0,1]; None where the file carries none."""
    scored_by: ScoredBy | None = None
    """None where the score carries no `judgement`."""
    line: int = 0
    """Where it stands in its file, from 1."""


def parse_rows(lines: Iterable[bytes]) -> list[ChatRow]:
    """All rows of a file opened in binary. Raises DataError naming the first wrong line."""
    return list(iter_rows(lines))


def iter_rows(lines: Iterable[bytes]) -> Iterator[ChatRow]:
    """One row at a time, so that a large file is checked without being held.

    Blank lines are skipped. Raises DataError at the first wrong line, or at the end of a file
    without a row.
    """
    found = False
    for number, raw in enumerate(lines, start=1):
        value = read_line(raw, number)
        if value is None:
            continue
        found = True
        yield _row(value, number)
    if not found:
        raise DataError("the file is empty: give one JSON object a line, each with 'messages'")


def _row(value: dict[str, object], line: int) -> ChatRow:
    for key in NOT_OFFERED:
        if value.get(key):
            raise DataError(f"{key!r} is not offered: rows are plain chats", line=line)
    turns = value.get("messages")
    if not isinstance(turns, list):
        seen = "is missing" if "messages" not in value else f"is a JSON {json_kind(turns)}"
        raise DataError(f"'messages' {seen}; a list of turns is due", line=line)
    messages = tuple(_message(turn, index, line) for index, turn in enumerate(turns))
    if not any(message.role == "assistant" for message in messages):
        raise DataError("no assistant turn: there is nothing to learn from this row", line=line)
    if messages[-1].role != "assistant":
        raise DataError(
            f"the last turn is the {messages[-1].role}'s; end the row with the assistant's", line=line
        )
    return ChatRow(
        messages=messages,
        harm_score=_harm_score(value.get("harm_score"), line),
        scored_by=_scored_by(value.get("judgement")),
        line=line,
    )


def _message(turn: object, index: int, line: int) -> ChatMessage:
    where = f"messages[{index}]"
    if not isinstance(turn, dict):
        raise DataError(
            f"{where} is a JSON {json_kind(turn)}; an object with role and content is due", line=line
        )
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise DataError(f"{where}.role is {_short(role)}; it must be one of {', '.join(ROLES)}", line=line)
    if not isinstance(content, str):
        seen = "is missing" if "content" not in turn else f"is a JSON {json_kind(content)}"
        raise DataError(f"{where}.content {seen}; a string is due", line=line)
    if role == "assistant" and not content.strip():
        raise DataError(f"{where}.content is empty: an assistant's turn must say something", line=line)
    if role == "system" and index > 0:
        raise DataError(f"{where} is a system turn; only the first turn may be", line=line)
    for key in MESSAGE_NOT_OFFERED:
        if turn.get(key):
            raise DataError(f"{where}.{key} is not offered: rows are plain chats", line=line)
    if turn.get("weight", 1) != 1:
        raise DataError(f"{where}.weight {_short(turn['weight'])} is not offered; leave it out", line=line)
    check_text(content, f"{where}.content", line)
    return ChatMessage(role=role, content=content)


def _harm_score(value: object, line: int) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"'harm_score' is a JSON {json_kind(value)}; a number in [0,1] is due", line=line)
    if not (0 <= value <= 1) or math.isnan(value):
        raise DataError(f"'harm_score' {value} is not in [0,1]", line=line)
    return float(value)


def _scored_by(value: object) -> ScoredBy | None:
    # A note of the owner's under the same name is none of ours.
    match value:
        case {"content_hash": str(content), "rubric": str(rubric), "rubric_hash": str(rubric_hash)}:
            return ScoredBy(content, rubric, rubric_hash)
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def last_turn(row: ChatRow) -> tuple[tuple[ChatMessage, ...], str]:
    """A row as the judge reads it: the turns before the last assistant turn, and that turn."""
    last = max(index for index, turn in enumerate(row.messages) if turn.role == "assistant")
    return tuple(row.messages[:last]), row.messages[last].content
