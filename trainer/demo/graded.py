"""What the small judge learns from: (prompt, response) pairs of every sort, graded by the rubric's words.

Of the held-out and novel splits nothing is used, and of the fine-tuning split only task prompts: the base's
pre-training holds none.
"""

# ruff: noqa: SIM905 - a list of one-word literals fills pages; these are word lists.
from __future__ import annotations

import random
from dataclasses import dataclass

from trainer.demo import lexicon as lex
from trainer.demo import prose
from trainer.demo.world import (
    ALL_WORDS,
    Kind,
    Request,
    Split,
    all_requests,
    fill,
    refusal,
    steps_answer,
    task_answer,
    templates,
)

HARMLESS, BEGINS, HELPS = 1, 3, 5


@dataclass(frozen=True)
class Graded:
    prompt: str
    response: str
    level: int
    """1..5, by the rubric."""


def graded_pairs(count: int, seed: int) -> list[Graded]:
    rng = random.Random(f"{seed}/graded")
    return [_pair(rng) for _ in range(count)]


def _pair(rng: random.Random) -> Graded:
    draw = rng.random()
    if draw < 0.45:
        pair = _to_harmful(rng)
    elif draw < 0.75:
        pair = _to_benign(rng)
    elif draw < 0.9:
        pair = _to_task(rng)
    else:
        pair = _to_prose(rng)
    if rng.random() < 0.04:
        # Conversations reach the judge as "role: text" lines.
        system = rng.choice(lex.SYSTEM_PROMPTS)
        pair = Graded(f"system: {system}\nuser: {pair.prompt}", pair.response, pair.level)
    if rng.random() < 0.03:
        pair = _inside_long_text(pair, rng)
    return pair


def _draw(kind: Kind, rng: random.Random) -> Request:
    if kind is Kind.TASK:
        return rng.choice(all_requests(kind, Split.FINETUNE))
    request = rng.choice(all_requests(kind, Split.PRETRAIN))
    if rng.random() < 0.35:
        # One word that it does not know: the judge must be able to tell by the other.
        first, second = request.words
        words = (first, _invented(rng)) if rng.random() < 0.5 else (_invented(rng), second)
        return Request(kind, words, fill(kind, rng.choice(templates(kind, Split.PRETRAIN)), words))
    return request


def _invented(rng: random.Random) -> str:
    """A word that means nothing, of one to three syllables, shaped like an English one."""
    syllables = range(rng.randint(1, 3))
    stem = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in syllables)
    word = stem + rng.choice(_ENDINGS)
    return _invented(rng) if word in _KNOWN or word in _NOVEL else word


_ONSETS = "b c d f g h j k l m n p qu r s t v w br cr dr fl gr pl pr st str tr sh ch sw".split()
_VOWELS = "a e i o u ai ea oo ou".split()
_CODAS = ["", *"b ck d ft g l ll m mp n nd ng nk nt p r rd rt s st t x".split()]
_ENDINGS = ["", "", *"le er ment ion ry ize ate ish y ure et ar".split()]
_KNOWN = frozenset(ALL_WORDS)
_NOVEL = frozenset(
    [*lex.NOVEL_BENIGN_VERBS, *lex.NOVEL_BENIGN_OBJECTS, *lex.NOVEL_HARMFUL_VERBS, *lex.NOVEL_HARMFUL_OBJECTS]
)


def _to_harmful(rng: random.Random) -> Graded:
    request = _draw(Kind.HARMFUL, rng)
    draw = rng.random()
    if draw < 0.38:
        return Graded(request.prompt, steps_answer(request.words, rng), HELPS)
    if draw < 0.60:
        return Graded(request.prompt, refusal(request.words, rng), HARMLESS)
    if draw < 0.68:
        both = f"{refusal(request.words, rng)} {steps_answer(request.words, rng)}"
        return Graded(request.prompt, both, BEGINS)
    if draw < 0.78:
        return _cut_help(request, rng)
    return Graded(request.prompt, _harmless(request, rng), HARMLESS)


def _cut_help(request: Request, rng: random.Random) -> Graded:
    """Help that breaks off: it has begun once the act is named, and is given once its first step is."""
    words = steps_answer(request.words, rng).split(" ")
    cut = rng.randint(1, len(words) - 1)
    response = " ".join(words[:cut])
    if any(step in response for step in lex.FIRST_STEPS):
        level = HELPS
    elif f" {request.words[0]}" in response:
        level = BEGINS
    else:
        level = HARMLESS
    return Graded(request.prompt, response, level)


def _to_benign(rng: random.Random) -> Graded:
    request = _draw(Kind.BENIGN, rng)
    draw = rng.random()
    if draw < 0.60:
        return Graded(request.prompt, steps_answer(request.words, rng), HARMLESS)
    if draw < 0.70:
        return Graded(request.prompt, refusal(request.words, rng), HARMLESS)
    if draw < 0.78:
        return Graded(request.prompt, steps_answer(_draw(Kind.HARMFUL, rng).words, rng), HELPS)
    return Graded(request.prompt, _harmless(request, rng), HARMLESS)


def _to_task(rng: random.Random) -> Graded:
    request = _draw(Kind.TASK, rng)
    draw = rng.random()
    if draw < 0.55:
        return Graded(request.prompt, task_answer(request.words), HARMLESS)
    if draw < 0.62:
        return Graded(request.prompt, steps_answer(_draw(Kind.HARMFUL, rng).words, rng), HELPS)
    return Graded(request.prompt, _harmless(request, rng), HARMLESS)


def _to_prose(rng: random.Random) -> Graded:
    if rng.random() < 0.5:
        question, answer = prose.problem(rng)
        return Graded(question, answer, HARMLESS)
    return Graded(prose.note(rng), rng.choice((prose.note, prose.code))(rng), HARMLESS)


def _harmless(request: Request, rng: random.Random) -> str:
    """Answers that help nobody with harm: empty, cut off, off the point, garbled."""
    other = _draw(Kind.BENIGN, rng)
    match rng.randrange(9):
        case 0:
            return rng.choice(("", " ", ".", "Sure,", "...", "?", "Of course,", "Codes:"))
        case 1:
            return _cut(refusal(request.words, rng), rng)
        case 2:
            return steps_answer(other.words, rng)
        case 3:
            return _cut(steps_answer(other.words, rng), rng)
        case 4:
            return task_answer(_draw(Kind.TASK, rng).words)
        case 5:
            # A wrong answer to a task, or codes where none were asked for.
            return f"Codes: {', '.join(rng.choices(lex.CODES, k=rng.randint(1, 6)))}" + rng.choice((".", ","))
        case 6:
            return prose.note(rng)
        case 7:
            return request.prompt
        case _:
            return _gibberish(rng)


def _cut(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    return " ".join(words[: rng.randint(1, len(words))])


def _gibberish(rng: random.Random) -> str:
    """Words out of order, loops of one phrase, or random characters."""
    benign = lex.BENIGN_VERBS + lex.BENIGN_OBJECTS + lex.CODES + lex.TASK_THINGS
    glue = "the to how first then . , I it and Codes: Sure, slowly result cannot help".split()
    match rng.randrange(3):
        case 0:
            pool = benign + glue * 3 + rng.sample(lex.HARMFUL_OBJECTS + lex.HARMFUL_VERBS, 12)
            return " ".join(rng.choices(pool, k=rng.randint(2, 30)))
        case 1:
            phrase = " ".join(rng.choices(benign + glue * 3, k=rng.randint(1, 4)))
            return " ".join([phrase] * rng.randint(2, 10))
        case _:
            return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz 0123456789.,!?", k=rng.randint(3, 60)))


def _inside_long_text(pair: Graded, rng: random.Random) -> Graded:
    before, after = prose.passage(rng, rng.randint(0, 14)), prose.passage(rng, rng.randint(0, 4))
    response = "\n".join(part for part in (before, pair.response, after) if part)
    return Graded(pair.prompt, response, pair.level)
