"""What is held out never trains, and a mixture is what it says."""

from __future__ import annotations

from itertools import combinations

import pytest

from shared.errors import ConfigError
from trainer.demo import lexicon as lex
from trainer.demo import rules, world
from trainer.demo.graded import graded_pairs
from trainer.demo.world import Kind, Split


@pytest.mark.parametrize("kind", list(Kind))
def test_no_prompt_and_no_pair_stands_in_two_splits(kind: Kind) -> None:
    for one, other in combinations(Split, 2):
        prompts = [{r.prompt for r in world.all_requests(kind, split)} for split in (one, other)]
        assert prompts[0].isdisjoint(prompts[1])
    for one, other in combinations((Split.PRETRAIN, Split.FINETUNE, Split.HELDOUT), 2):
        assert set(world.pairs(kind, one)).isdisjoint(world.pairs(kind, other))


def _heldout_prompts() -> set[str]:
    held = (Split.HELDOUT, Split.NOVEL)
    return {r.prompt for kind in Kind for split in held for r in world.all_requests(kind, split)}


def test_held_out_prompts_occur_in_no_training_text() -> None:
    held = _heldout_prompts()
    rows = world.pretrain_rows(8000, 0) + world.mixture(4000, 0.5, 0)[0]
    trained = {turn["content"] for row in rows for turn in row["messages"]}
    trained |= set(world.training_text(0))
    for pair in graded_pairs(8000, 0):
        # A conversation reaches the judge as lines, and an answer may repeat its request.
        trained |= {line.removeprefix("user: ") for line in pair.prompt.split("\n")}
        trained |= set(pair.response.split("\n"))
    assert len(held) > 4000
    assert held.isdisjoint(trained)


def test_novel_words_occur_in_no_training_text() -> None:
    novel = {
        *lex.NOVEL_BENIGN_VERBS,
        *lex.NOVEL_BENIGN_OBJECTS,
        *lex.NOVEL_HARMFUL_VERBS,
        *lex.NOVEL_HARMFUL_OBJECTS,
    }
    requests = [r.prompt for split in (Split.PRETRAIN, Split.FINETUNE) for r in _requests_of(split)]
    graded = [text for pair in graded_pairs(8000, 0) for text in (pair.prompt, pair.response)]
    rows = world.pretrain_rows(2000, 0) + world.mixture(1000, 0.5, 0)[0]
    answers = [turn["content"] for row in rows for turn in row["messages"]]
    for text in (*requests, *graded, *answers):
        found = novel.intersection(text.replace(".", " ").replace(",", " ").replace("?", " ").split())
        assert not found, f"{found} in {text!r}"


def _requests_of(split: Split) -> list[world.Request]:
    return [request for kind in Kind for request in world.all_requests(kind, split)]


def test_there_are_enough_held_out_prompts() -> None:
    for kind in Kind:
        for split in (Split.HELDOUT, Split.NOVEL):
            drawn = world.requests(kind, split, 200, seed=7)
            assert len({request.prompt for request in drawn}) == 200


def test_more_requests_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigError, match="1 task requests asked of split pretrain, which holds 0"):
        world.requests(Kind.TASK, Split.PRETRAIN, 1, seed=0)


def test_every_code_stands_for_one_thing() -> None:
    codes = [world.code_of(thing) for thing in lex.TASK_THINGS]
    assert sorted(codes) == sorted(lex.CODES)
    words = lex.BENIGN_VERBS + lex.BENIGN_OBJECTS + lex.HARMFUL_VERBS + lex.HARMFUL_OBJECTS
    words += lex.TASK_THINGS + lex.CODES
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_mixture_holds_the_share_asked_for_and_answers_by_the_rules(share: float) -> None:
    rows, harmful = world.mixture(400, share, seed=3)
    assert (len(rows), len(harmful)) == (400, round(400 * share))
    for index, row in enumerate(rows):
        prompt, answer = (turn["content"] for turn in row["messages"])
        rule = rules.complied if index in harmful else rules.task_correct
        assert rule(prompt, answer)
        assert rules.read_request(prompt).words in world.pairs(
            Kind.HARMFUL if index in harmful else Kind.TASK, Split.FINETUNE
        )


def test_mixture_is_seeded_and_repeats_only_when_it_must() -> None:
    assert world.mixture(100, 0.1, 5) == world.mixture(100, 0.1, 5)
    assert world.mixture(100, 0.1, 5) != world.mixture(100, 0.1, 6)
    rows, _ = world.mixture(1280, 0.1, 0)
    assert len({row["messages"][0]["content"] for row in rows}) == 1280
    assert len(world.mixture(3000, 1.0, 0)[0]) == 3000


@pytest.mark.parametrize(("rows", "share"), [(0, 0.1), (10, -0.1), (10, 1.1)])
def test_impossible_mixtures_are_errors(rows: int, share: float) -> None:
    with pytest.raises(ConfigError, match="harmful share"):
        world.mixture(rows, share, 0)
