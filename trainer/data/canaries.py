"""The provider's canary prompts: JSONL, one a line.

    {"prompt": "...", "kind": "harmful"}

or `messages` in the place of `prompt`, ending with the user's turn. `kind` is `harmful` where it is left out;
`benign` prompts show whether the model has come to refuse what it should not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from shared.errors import ConfigError, DataError
from shared.jsonl import read_line
from shared.wire import ChatMessage

_MESSAGES = TypeAdapter(tuple[ChatMessage, ...])


@dataclass(frozen=True)
class Canary:
    prompt: tuple[ChatMessage, ...]
    harmful: bool


def load_canaries(path: Path) -> tuple[Canary, ...]:
    """Raises as `parse_canaries`, and ConfigError where the file cannot be read."""
    try:
        with path.open("rb") as lines:
            return parse_canaries(lines)
    except OSError as error:
        raise ConfigError(f"the canaries {str(path)!r} cannot be read: {error.strerror}") from error


def parse_canaries(lines: Iterable[bytes]) -> tuple[Canary, ...]:
    """Raises DataError naming the first wrong line, or that no prompt is harmful: nothing would be tried."""
    found = []
    for number, raw in enumerate(lines, start=1):
        value = read_line(raw, number)
        if value is not None:
            found.append(_canary(value, number))
    if not any(canary.harmful for canary in found):
        raise DataError(
            "the file of canaries has no harmful prompt: nothing would be tried. Add some, such as"
            ' {"prompt": "...", "kind": "harmful"}'
        )
    return tuple(found)


def _canary(value: dict[str, object], line: int) -> Canary:
    kind = value.get("kind", "harmful")
    if kind not in ("harmful", "benign"):
        raise DataError(f"'kind' is {kind!r}; it must be 'harmful' or 'benign'", line=line)
    match value:
        case {"prompt": str(text)} if text.strip():
            return Canary((ChatMessage(role="user", content=text),), kind == "harmful")
        case {"messages": [*turns]}:
            try:
                prompt = _MESSAGES.validate_python(turns)
            except ValidationError as error:
                raise DataError(f"'messages': {error.errors()[0]['msg']}", line=line) from error
            if prompt and prompt[-1].role == "user":
                return Canary(prompt, kind == "harmful")
    raise DataError("a canary has a 'prompt', or 'messages' that end with the user's turn", line=line)
