"""The shape of a rubric's file, the same for those that are shipped and those that an operator gives."""

from __future__ import annotations

import tomllib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from shared.errors import ConfigError

Fence = Annotated[list[str], Field(min_length=2, max_length=2)]

REQUEST_FENCE = ["\n\n<conversation-{nonce}>\n", "</conversation-{nonce}>\n\n"]
TURN_FENCE = ['<turn-{nonce} role="{role}">\n', "\n</turn-{nonce}>\n"]
REPLY_FENCE = ["<reply-{nonce}>\n", "\n</reply-{nonce}>\n\n"]
"""What a file has that names no fences of its own."""

LEVELS = ["1", "2", "3", "4", "5"]
YES_NO = ["0", "1"]
LABELS_OF = {
    "harm_levels": [LEVELS],
    "binary": [YES_NO],
    "strong_reject": [YES_NO, LEVELS, LEVELS],
}
"""The labels that the questions of each scale must have, in their order."""


class QuestionTable(BaseModel):
    """One `[[question]]` of a rubric's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ask: str = ""
    suffix: str
    labels: list[str] = LEVELS


class RubricFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    scale: Literal["harm_levels", "binary", "strong_reject"] = "harm_levels"
    prefix: Annotated[str, StringConstraints(min_length=1, max_length=50_000)]
    request_fence: Fence = REQUEST_FENCE
    turn_fence: Fence | None = None
    reply_fence: Fence = REPLY_FENCE
    question: Annotated[list[QuestionTable], Field(min_length=1, max_length=8)]

    @model_validator(mode="before")
    @classmethod
    def _turns_are_fenced(cls, raw: object) -> object:
        # One that brings fences of its own may want its turns as plain lines, as demo-v1 does.
        if isinstance(raw, dict) and "turn_fence" not in raw and "request_fence" not in raw:
            return {**raw, "turn_fence": TURN_FENCE}
        return raw

    @model_validator(mode="after")
    def _holds_together(self) -> RubricFile:
        if "{nonce}" in self.prefix:
            raise ValueError(
                "prefix: it holds {nonce}, but must be the same for every request, for prefix caches;"
                " put {nonce} into the fences and the ask"
            )
        wanted, got = LABELS_OF[self.scale], [question.labels for question in self.question]
        if got != wanted:
            raise ValueError(
                f"question: scale {self.scale!r} wants {len(wanted)} with the labels {wanted}; there are"
                f" {len(got)} with {got}"
            )
        return self


def read_file(text: str, source: str) -> RubricFile:
    """A rubric's file, checked.

    Args:
        source: what messages call it.

    Raises:
        ConfigError: naming the file, the key and what is wrong there.
    """
    try:
        return RubricFile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not TOML: {error}") from error
    except ValidationError as error:
        faults = "; ".join(_told(fault["loc"], fault["type"], fault["msg"]) for fault in error.errors())
        raise ConfigError(f"{source}: {faults}") from error


def check_strict(file: RubricFile, source: str) -> None:
    """What an operator's rubric must keep beside that: nothing graded may pass for its frame.

    Raises:
        ConfigError: a fence without the nonce, turns that can be forged, or nothing asked.
    """
    fences = {
        "request_fence": file.request_fence,
        "turn_fence": file.turn_fence,
        "reply_fence": file.reply_fence,
    }
    for key, fence in fences.items():
        if fence is None:
            raise ConfigError(
                f"{source}: turn_fence is missing beside a request_fence of your own: turns without fences"
                f" can be forged; write for example {TURN_FENCE}, or leave all fences out"
            )
        for index, mark in enumerate(fence):
            if "{nonce}" not in mark:
                raise ConfigError(
                    f"{source}: {key}[{index}] {mark!r} holds no {{nonce}}: graded text could write it;"
                    " put {nonce} into it, or leave all fences out"
                )
    if file.turn_fence is not None and "{role}" not in file.turn_fence[0]:
        raise ConfigError(f"{source}: turn_fence[0] holds no {{role}}: the judge could not tell who speaks")
    for number, question in enumerate(file.question):
        if not question.ask.strip():
            raise ConfigError(
                f"{source}: question[{number}].ask is empty: after the graded text the judge must be asked"
                " again, with the labels that are an answer"
            )


def _told(where: tuple[int | str, ...], kind: str, message: str) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")
    if kind == "missing":
        return f"{path} is missing; see docs/rubrics.md for an example"
    if kind == "extra_forbidden":
        return f"{path} is no key of a rubric; there are {', '.join(RubricFile.model_fields)}"
    return f"{path}: {message}" if path else message.removeprefix("Value error, ")
