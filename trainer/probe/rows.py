"""Labelled prompts: JSONL, one a line.

    {"prompt": "How do I ...?", "label": true, "category": "Fraud", "dataset": "catqa"}
    {"messages": [{"role": "user", "content": "..."}], "harm_score": 0.9}

`messages` may be a training row: the assistant's answer at its end is left out, since the probe reads the
prompt alone. The label stands under `label` or `harmful` (true, false, 1 or 0), else in `harm_score`, a
number in [0,1] that counts as harmful from 0.5. `category` and `dataset` are for evaluation; the latter is
the file's name where a row says nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigError, DataError
from shared.jsonl import check_text, json_kind, read_line
from shared.wire import ChatMessage, content_hash

ROLES = ("system", "user", "assistant")
LABELS = ("label", "harmful")
SCORE = "harm_score"
HARMFUL_FROM = 0.5


@dataclass(frozen=True)
class Labelled:
    messages: tuple[ChatMessage, ...]
    """The prompt; ends with the user's turn."""
    harmful: bool
    dataset: str
    category: str | None = None
    line: int = 0
    """Where it stands in its file, from 1."""

    @property
    def text(self) -> str:
        """All turns, for controls that read words."""
        return "\n".join(message.content for message in self.messages)

    @property
    def key(self) -> int:
        """63 bits of the prompt's hash: the same prompt has the same key, whatever its label."""
        return int(content_hash(list(self.messages), "")[:16], 16) >> 1


def read_labelled(paths: Sequence[Path], label: str | None = None) -> Iterator[Labelled]:
    """The rows of all files in order, one at a time.

    Raises:
        ConfigError: a file cannot be read.
        DataError: names the file and the line that is wrong.
    """
    for path in paths:
        try:
            with path.open("rb") as lines:
                yield from iter_labelled(lines, dataset=path.stem, label=label)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def iter_labelled(lines: Iterable[bytes], *, dataset: str, label: str | None = None) -> Iterator[Labelled]:
    """Blank lines are skipped. Raises DataError at the first wrong line, or for a file without a row."""
    found = False
    for number, raw in enumerate(lines, start=1):
        value = read_line(raw, number)
        if value is not None:
            found = True
            yield _row(value, number, dataset, label)
    if not found:
        raise DataError("the file is empty: give one JSON object a line, each with a prompt and a label")


def data_hash(rows: Iterable[Labelled]) -> str:
    """sha256 over prompts and labels in order; 64 hex digits."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(content_hash(list(row.messages), "").encode())
        digest.update(b"1" if row.harmful else b"0")
    return digest.hexdigest()


def _row(value: dict[str, object], line: int, dataset: str, label: str | None) -> Labelled:
    return Labelled(
        messages=prompt_turns(value, line),
        harmful=_label(value, label, line),
        dataset=_name(value, "dataset", line) or dataset,
        category=_name(value, "category", line),
        line=line,
    )


def prompt_turns(value: dict[str, object], line: int) -> tuple[ChatMessage, ...]:
    """Of `prompt` or `messages`. Raises DataError with the line where there is no prompt to read."""
    if "messages" in value:
        turns = _turns(value["messages"], line)
        if turns and turns[-1].role == "assistant":
            turns = turns[:-1]
    else:
        prompt = value.get("prompt")
        if not isinstance(prompt, str):
            seen = "is missing" if "prompt" not in value else f"is a JSON {json_kind(prompt)}"
            raise DataError(f"'prompt' {seen}; a string, or 'messages', is due", line=line)
        check_text(prompt, "prompt", line)
        turns = [ChatMessage(role="user", content=prompt)]
    if not turns or turns[-1].role != "user":
        raise DataError("the prompt does not end with a user's turn", line=line)
    if not turns[-1].content.strip():
        raise DataError("the prompt is empty: there is nothing to read; leave the row out", line=line)
    return tuple(turns)


def _turns(value: object, line: int) -> list[ChatMessage]:
    if not isinstance(value, list):
        raise DataError(f"'messages' is a JSON {json_kind(value)}; a list of turns is due", line=line)
    turns = []
    for index, turn in enumerate(value):
        match turn:
            case {"role": ("system" | "user" | "assistant") as role, "content": str(content)}:
                check_text(content, f"messages[{index}].content", line)
                turns.append(ChatMessage(role=role, content=content))
            case _:
                raise DataError(
                    f"messages[{index}] is no turn; an object with a role ({', '.join(ROLES)}) and a"
                    " content, a string, is due",
                    line=line,
                )
    return turns


def _label(value: dict[str, object], key: str | None, line: int) -> bool:
    """The key that was named, else the first of LABELS that is there, else the score."""
    for name in (key,) if key else LABELS:
        if name in value:
            return _yes_or_no(value[name], name, line)
    if key is None and value.get(SCORE) is not None:
        score = value[SCORE]
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise DataError(f"'{SCORE}' is {score!r:.40}; a number in [0,1] is due", line=line)
        return score >= HARMFUL_FROM
    wanted = key or f"{', '.join(LABELS)} or {SCORE}"
    raise DataError(f"no label: {wanted} is due; name another key with --label", line=line)


def _yes_or_no(found: object, name: str, line: int) -> bool:
    if isinstance(found, bool) or (isinstance(found, int) and found in (0, 1)):
        return bool(found)
    raise DataError(f"'{name}' is {found!r:.40}; true, false, 1 (harmful) or 0 is due", line=line)


def _name(value: dict[str, object], key: str, line: int) -> str | None:
    found = value.get(key)
    if found is None or isinstance(found, str):
        return found or None
    raise DataError(f"'{key}' is a JSON {json_kind(found)}; a string is due", line=line)
