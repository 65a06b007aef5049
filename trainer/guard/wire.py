"""What `/v1/guard` is asked and answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.wire import ChatMessage

MAX_TURNS = 256
MAX_CHARACTERS = 400_000


class GuardModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GuardRequest(GuardModel):
    input: (
        Annotated[str, Field(max_length=MAX_CHARACTERS)]
        | Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_TURNS)]
    )
    """A text, or a conversation that ends with the user's turn."""
    source: Literal["prompt", "memory", "tool"] = "prompt"
    """Where the text is from. Whatever an agent reads is read as if a user said it; the word is repeated in
    the answer."""
    target_fpr: float | None = Field(default=None, gt=0, lt=1)
    """Share of harmless prompts that may be flagged; one of those that the probe has a threshold for."""


class ReadBy(GuardModel):
    model: str
    fingerprint: str
    """Of the model's weights, its first 12 digits."""
    head: str
    """Pooling and layer of the probe."""


class Timings(GuardModel):
    queue_ms: float
    """Waiting for the readings before it."""
    read_ms: float
    """The template, the forward and the probe."""


class GuardReading(GuardModel):
    object: Literal["guard.reading"] = "guard.reading"
    source: Literal["prompt", "memory", "tool"]
    risk: float = Field(ge=0, le=1)
    """Calibrated probability that the prompt is harmful, at the share of harmful ones in the probe's
    training rows."""
    flagged: bool
    threshold: float
    """The risk above which a prompt is flagged."""
    target_fpr: float
    tokens: int
    """Of the prompt as the model read it, the chat template's own included."""
    probe: ReadBy
    timings: Timings
