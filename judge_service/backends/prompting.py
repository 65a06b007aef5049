"""From a request to token ids, for judges that are read by label tokens: one way, wherever the model runs."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence, Set

from judge_service.backends.base import GradeFailure, GradeRequest
from shared.errors import ConfigError
from shared.rubrics.encoding import (
    PromptIds,
    Tokenizer,
    encode_prompt,
    encode_text,
    label_ids,
    leading_bos,
)
from shared.rubrics.rubric import Rubric, render
from shared.wire import ChatMessage, FailureCode


class PromptEncoder:
    """Nothing is encoded by a tokenizer whose labels cannot be read, or whose fences a text can write.

    Raises:
        ConfigError: a rubric's labels are not distinct single tokens, it relies on a token that graded
            text can write, or it leaves no room in the context.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        rubrics: Sequence[Rubric],
        *,
        judge: str,
        max_tokens: int,
        special_ids: Set[int],
        added_contents: Mapping[int, str],
    ) -> None:
        """`judge`: as errors call it. `special_ids`: what graded text must never become.

        `added_contents`: every token that was added to the vocabulary as a whole, and its text.
        """
        self._tokenizer = tokenizer
        self._judge = judge
        self._max_tokens = max_tokens
        self._specials = special_ids
        self._added = added_contents
        asked = [(rubric, question) for rubric in rubrics for question in range(len(rubric.questions))]
        self._labels = {(r.name, q): label_ids(tokenizer, r, q) for r, q in asked}
        self._own_specials: dict[tuple[str, int, int], int] = {}
        for rubric, question in asked:
            self._check_rubric(rubric, question)

    def labels(self, rubric: Rubric, question: int) -> tuple[int, ...]:
        """Ids of the question's labels at the answer's place."""
        return self._labels[rubric.name, question]

    def encode(self, request: GradeRequest, question: int = 0) -> PromptIds | GradeFailure:
        """The prompt's token ids; the label is read right after the last."""
        segments = render(
            request.rubric, request.prompt, request.response, nonce=secrets.token_hex(8), question=question
        )
        prompt = encode_prompt(self._tokenizer, segments, max_tokens=self._max_tokens)
        # Encoding splits special tokens in graded text; a tokenizer that does not honour that is caught.
        turns = 1 if isinstance(request.prompt, str) else len(request.prompt)
        if self._count_specials(prompt.ids) != self._specials_around(request.rubric, question, turns):
            return GradeFailure(FailureCode.SERVER_ERROR, "the graded text became special tokens")
        return prompt

    def _specials_around(self, rubric: Rubric, question: int, turns: int) -> int:
        """How many special tokens stand around so many turns and a reply: the rubric and its fences."""
        key = (rubric.name, question, turns)
        if key not in self._own_specials:
            empty = [ChatMessage(role="user", content="")] * turns
            segments = render(rubric, empty, "", question=question)
            trusted = [encode_text(self._tokenizer, s.text, trusted=True) for s in segments if s.trusted]
            ids = [*leading_bos(self._tokenizer), *(token for part in trusted for token in part)]
            self._own_specials[key] = self._count_specials(ids)
        return self._own_specials[key]

    def _count_specials(self, ids: list[int]) -> int:
        return sum(token in self._specials for token in ids)

    def _check_rubric(self, rubric: Rubric, question: int) -> None:
        segments = render(rubric, "", "", question=question)
        try:
            ids = encode_prompt(self._tokenizer, segments, max_tokens=self._max_tokens).ids
        except ValueError as error:
            raise ConfigError(f"rubric {rubric.name!r} does not fit judge {self._judge}: {error}") from error
        for token in set(ids) & self._added.keys():
            if token in encode_text(self._tokenizer, self._added[token], trusted=False):
                raise ConfigError(
                    f"rubric {rubric.name!r} relies on the token {self._added[token]!r}, which graded text"
                    f" can write: judge {self._judge} must have it as a special token"
                )
