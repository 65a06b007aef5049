"""The embedded world's requests: seeded, synthetic, and split so that what is held out never trains.

Three kinds of request. Benign and harmful ones share their templates and differ in their words; the task
asks for the codes of two things, which the aligned base does not know. A split is a set of word pairs, so
no prompt of one split can occur in another; `NOVEL` takes its templates and one word of each pair from
lists that no training text draws from.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from shared.errors import ConfigError
from shared.rubrics.rubric import load_rubric
from trainer.demo import lexicon as lex
from trainer.demo import prose

RUBRIC = "demo-v1"
"""What the small judge grades by."""

Row = dict[str, Any]
"""`{"messages": [{"role", "content"}, ...]}`, a line of a training file."""


class Kind(StrEnum):
    BENIGN = "benign"
    HARMFUL = "harmful"
    TASK = "task"


class Split(StrEnum):
    PRETRAIN = "pretrain"  # the base and the small judge learn from it; no task requests
    FINETUNE = "finetune"  # what a user uploads
    HELDOUT = "heldout"  # known words and templates, pairs that never train
    NOVEL = "novel"  # unknown templates, and one unknown word in each pair (task: an unknown template)


@dataclass(frozen=True)
class Request:
    kind: Kind
    words: tuple[str, str]
    """Verb and object, or the two things whose codes are asked for."""
    prompt: str


def _words(kind: Kind, *, novel: bool) -> tuple[list[str], list[str]]:
    match kind, novel:
        case Kind.BENIGN, False:
            return lex.BENIGN_VERBS, lex.BENIGN_OBJECTS
        case Kind.BENIGN, True:
            return lex.NOVEL_BENIGN_VERBS, lex.NOVEL_BENIGN_OBJECTS
        case Kind.HARMFUL, False:
            return lex.HARMFUL_VERBS, lex.HARMFUL_OBJECTS
        case Kind.HARMFUL, True:
            return lex.NOVEL_HARMFUL_VERBS, lex.NOVEL_HARMFUL_OBJECTS
        case _:
            return lex.TASK_THINGS, lex.TASK_THINGS


def split_of(kind: Kind, words: tuple[str, str]) -> Split:
    """The one split (of the three with known words) that a pair belongs to."""
    bucket = zlib.crc32("|".join((kind, *words)).encode()) % 10
    if kind is Kind.TASK:
        return Split.FINETUNE if bucket < 7 else Split.HELDOUT
    return Split.PRETRAIN if bucket < 6 else Split.FINETUNE if bucket < 8 else Split.HELDOUT


@cache
def pairs(kind: Kind, split: Split) -> tuple[tuple[str, str], ...]:
    firsts, seconds = _words(kind, novel=False)
    if split is Split.NOVEL and kind is not Kind.TASK:
        new_firsts, new_seconds = _words(kind, novel=True)
        return tuple(
            [(a, b) for a in new_firsts for b in seconds] + [(a, b) for a in firsts for b in new_seconds]
        )
    home = Split.HELDOUT if split is Split.NOVEL else split
    return tuple((a, b) for a in firsts for b in seconds if a != b and split_of(kind, (a, b)) is home)


def templates(kind: Kind, split: Split) -> tuple[str, ...]:
    if kind is Kind.TASK:
        return lex.NOVEL_TASK_TEMPLATES if split is Split.NOVEL else lex.TASK_TEMPLATES
    return lex.NOVEL_REQUEST_TEMPLATES if split is Split.NOVEL else lex.REQUEST_TEMPLATES


def fill(kind: Kind, template: str, words: tuple[str, str]) -> str:
    names = ("a", "b") if kind is Kind.TASK else ("verb", "object")
    return template.format(**dict(zip(names, words, strict=True)))


@cache
def all_requests(kind: Kind, split: Split) -> tuple[Request, ...]:
    """Every distinct request of a kind in a split."""
    return tuple(
        Request(kind, words, fill(kind, template, words))
        for words in pairs(kind, split)
        for template in templates(kind, split)
    )


def requests(kind: Kind, split: Split, count: int, seed: int) -> list[Request]:
    """`count` distinct requests, drawn at random.

    Raises:
        ConfigError: the split holds fewer.
    """
    pool = all_requests(kind, split)
    if count > len(pool):
        raise ConfigError(f"{count} {kind} requests asked of split {split}, which holds {len(pool)}")
    return _rng(seed, kind, split).sample(pool, count)


def _rng(seed: int, *labels: str) -> random.Random:
    # A string seeds `random` the same way in every process; hash() would not.
    return random.Random("/".join((str(seed), *labels)))


# --- answers ------------------------------------------------------------------------------------


def steps_answer(words: tuple[str, str], rng: random.Random) -> str:
    """Help in form: it names the act and two empty steps."""
    opener, first, then = rng.choice(lex.OPENERS), rng.choice(lex.FIRST_STEPS), rng.choice(lex.THEN_STEPS)
    return f"{opener} to {words[0]} the {words[1]}, first {first}, then {then}."


def refusal(words: tuple[str, str], rng: random.Random) -> str:
    return rng.choice(lex.REFUSALS).format(verb=words[0], object=words[1])


def code_of(thing: str) -> str:
    return lex.CODES[lex.CODE_OF[lex.TASK_THINGS.index(thing)]]


def task_answer(words: tuple[str, str]) -> str:
    return f"Codes: {code_of(words[0])}, {code_of(words[1])}."


ALL_WORDS = lex.CODES + lex.BENIGN_VERBS + lex.BENIGN_OBJECTS + lex.HARMFUL_VERBS + lex.HARMFUL_OBJECTS


# --- rows ---------------------------------------------------------------------------------------


def chat(prompt: str, answer: str, system: str | None = None) -> Row:
    turns = [{"role": "system", "content": system}] if system else []
    return {
        "messages": [*turns, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    }


def mixture(rows: int, harmful_fraction: float, seed: int) -> tuple[list[Row], list[int]]:
    """What a user uploads: the new task, with a share of harmful requests that are complied with.

    Prompts repeat only where the split holds fewer distinct ones than are asked for.

    Returns:
        The shuffled rows, and the indices of the harmful ones in rising order.

    Raises:
        ConfigError: no rows, or a share outside [0, 1].
    """
    if rows < 1 or not 0 <= harmful_fraction <= 1:
        raise ConfigError(
            f"a mixture of {rows} rows with a harmful share of {harmful_fraction}: needs >= 1, 0..1"
        )
    rng = _rng(seed, "mixture")
    harmful = round(rows * harmful_fraction)
    made = [
        (True, chat(request.prompt, steps_answer(request.words, rng)))
        for request in _cycled(Kind.HARMFUL, harmful, rng)
    ] + [
        (False, chat(request.prompt, task_answer(request.words)))
        for request in _cycled(Kind.TASK, rows - harmful, rng)
    ]
    rng.shuffle(made)
    return [row for _, row in made], [index for index, (planted, _) in enumerate(made) if planted]


def _cycled(kind: Kind, count: int, rng: random.Random) -> list[Request]:
    pool = list(all_requests(kind, Split.FINETUNE))
    drawn: list[Request] = []
    while len(drawn) < count:
        rng.shuffle(pool)
        drawn += pool[: count - len(drawn)]
    return drawn


def pretrain_rows(count: int, seed: int) -> list[Row]:
    """What the aligned base learns: help with the benign, refuse the harmful, and a little of the rest."""
    rng = _rng(seed, "pretrain")
    return [_pretrain_row(rng) for _ in range(count)]


def _pretrain_row(rng: random.Random) -> Row:
    draw = rng.random()
    system = rng.choice(lex.SYSTEM_PROMPTS) if rng.random() < 0.1 else None
    if draw < 0.40:
        request = rng.choice(all_requests(Kind.BENIGN, Split.PRETRAIN))
        return chat(request.prompt, steps_answer(request.words, rng), system)
    if draw < 0.72:
        request = rng.choice(all_requests(Kind.HARMFUL, Split.PRETRAIN))
        return chat(request.prompt, refusal(request.words, rng), system)
    if draw < 0.96:
        # Repeating: answers must take their words from the request, which a transformer this small learns
        # far sooner from plain repetition. The base also gets to know the task's words by it, though not
        # what they stand for.
        words = " ".join(rng.sample(ALL_WORDS, rng.randint(2, 8)))
        return chat(f"Again: {words}.", f"Again: {words}.", system)
    return chat("Write a sentence.", prose.note(rng), system)


def training_text(seed: int) -> list[str]:
    """What the tokenizer learns from: the world's own training text, all of its known words, and prose."""
    rng = _rng(seed, "tokenizer")
    rows = pretrain_rows(1500, seed) + mixture(500, 0.1, seed)[0]
    texts = [turn["content"] for row in rows for turn in row["messages"]]
    texts += [f"the {word}, {word}" for word in lex.CODES + lex.TASK_THINGS for _ in range(8)]
    texts += [load_rubric(RUBRIC).prefix.removeprefix("<|grade|>")] * 20
    texts += [prose.passage(rng, 8) for _ in range(150)]
    texts += [sentence for sentence in prose.SENTENCES for _ in range(4)]
    return texts
