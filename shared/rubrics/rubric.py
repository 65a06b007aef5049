"""Rubrics: data files beside this one, and the pure code that renders and reads them.

The judge grades by them, and the embedded world trains its small judge by them.
"""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from shared.errors import ConfigError
from shared.wire import ChatMessage

LABELS = ("1", "2", "3", "4", "5")


@dataclass(frozen=True)
class Segment:
    """A stretch of a judge's prompt. Only a trusted one may hold special tokens."""

    text: str
    trusted: bool


@dataclass(frozen=True)
class Rubric:
    """Trusted text around the graded text. `{nonce}` in the fences is filled in for each request."""

    name: str
    prefix: str
    """First and constant, so that a server's prefix cache holds it."""
    request_fence: tuple[str, str]
    reply_fence: tuple[str, str]
    suffix: str
    """The answer's first token, right after this, is the label."""

    @property
    def hash(self) -> str:
        """sha256 of everything that reaches the judge; 16 hex digits."""
        parts = (self.prefix, *self.request_fence, *self.reply_fence, self.suffix)
        return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class LabelReading:
    score: float
    """Harm in [0,1]."""
    level: int
    """The likeliest label, 1..5."""
    probabilities: tuple[float, ...]
    """Of the labels 1..5, renormalised to sum to 1."""
    label_mass: float
    """What the labels had together before that."""


@cache
def load_rubric(name: str) -> Rubric:
    """A shipped rubric by name.

    Raises:
        ConfigError: no such rubric; the message lists those there are.
    """
    files = {
        Path(f.name).stem: f for f in resources.files("shared.rubrics").iterdir() if f.name.endswith(".toml")
    }
    if name not in files:
        raise ConfigError(f"unknown rubric {name!r}; there are: {', '.join(sorted(files))}")
    raw = tomllib.loads(files[name].read_text(encoding="utf-8"))
    return Rubric(
        name=raw["name"],
        prefix=raw["prefix"],
        request_fence=(raw["request_fence"][0], raw["request_fence"][1]),
        reply_fence=(raw["reply_fence"][0], raw["reply_fence"][1]),
        suffix=raw["suffix"],
    )


def render(
    rubric: Rubric, prompt: str | Sequence[ChatMessage], response: str, *, nonce: str = ""
) -> tuple[Segment, ...]:
    """The judge's prompt. The graded text stands in segments that are not trusted."""

    def trusted(text: str) -> Segment:
        return Segment(text.replace("{nonce}", nonce), trusted=True)

    if isinstance(prompt, str):
        request = prompt
    elif len(prompt) == 1:
        request = prompt[0].content
    else:
        request = "\n".join(f"{turn.role}: {turn.content}" for turn in prompt)
    return (
        trusted(rubric.prefix + rubric.request_fence[0]),
        Segment(request, trusted=False),
        trusted(rubric.request_fence[1] + rubric.reply_fence[0]),
        Segment(response, trusted=False),
        trusted(rubric.reply_fence[1] + rubric.suffix),
    )


def read_labels(label_logprobs: Sequence[float]) -> LabelReading:
    """Five log-probabilities of the labels 1..5 at the answer's place -> a score.

    `score = (sum k*p_k - 1) / 4`, the expectation of the level on [0,1].

    Raises:
        ValueError: not five numbers, or the labels have no mass at all; the caller makes that a
            failed verdict, never a number.
    """
    if len(label_logprobs) != len(LABELS):
        raise ValueError(f"{len(label_logprobs)} label log-probabilities, expected {len(LABELS)}")
    if any(math.isnan(lp) or lp == math.inf for lp in label_logprobs):
        raise ValueError(f"label log-probabilities {list(label_logprobs)} are not finite")
    masses = [math.exp(lp) for lp in label_logprobs]
    total = math.fsum(masses)
    if total <= 0:
        raise ValueError("the judge gave the labels no probability")
    probabilities = tuple(mass / total for mass in masses)
    expectation = math.fsum(k * p for k, p in enumerate(probabilities, start=1))
    level = 1 + max(range(len(probabilities)), key=probabilities.__getitem__)
    score = min(1.0, max(0.0, (expectation - 1) / 4))
    return LabelReading(score=score, level=level, probabilities=probabilities, label_mass=min(1.0, total))
