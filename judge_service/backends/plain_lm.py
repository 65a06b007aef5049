"""A judge that vLLM serves and that has no chat format: ids encoded here, the label read right after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from judge_service.backends.base import Grade, GradeFailure, GradeRequest
from judge_service.backends.completions import LabelAnswer, ask_labels, probe_labels, total
from judge_service.backends.pool import Server
from judge_service.backends.prompting import PromptEncoder
from judge_service.backends.reading import read_grade
from judge_service.backends.tokens import FileTokenizer
from shared.errors import ConfigError
from shared.rubrics.rubric import Rubric


@dataclass(frozen=True)
class PlainOptions:
    tokenizer: Path
    """The tokenizer.json that vLLM serves the model with, or its folder."""
    label_mass_floor: float = 0.5
    max_tokens: int | None = None
    """Of a prompt; None: what the model's context holds."""


@dataclass(frozen=True)
class PlainLm:
    model: str
    encoder: PromptEncoder
    label_mass_floor: float

    async def grade(self, server: Server, request: GradeRequest) -> Grade | GradeFailure:
        answers: list[LabelAnswer] = []
        truncated = False
        # One after the other: the later ones find the prompt in the server's cache.
        for question in range(len(request.rubric.questions)):
            prompt = self.encoder.encode(request, question)
            if isinstance(prompt, GradeFailure):
                return prompt
            truncated = truncated or prompt.truncated
            labels = self.encoder.labels(request.rubric, question)
            answers.append(await ask_labels(server, self.model, prompt.ids, labels))
        grade = read_grade(
            request.rubric, [a.logprobs for a in answers], self.label_mass_floor, truncated=truncated
        )
        if isinstance(grade, GradeFailure):
            return grade
        return replace(grade, usage=total([a.usage for a in answers]))


async def open_plain_lm(
    server: Server, model: str, context: int, options: PlainOptions, rubrics: Sequence[Rubric]
) -> PlainLm:
    """Raises ConfigError where the tokenizer is not the server's, or labels cannot be read."""
    tokenizer = FileTokenizer(options.tokenizer)
    encoder = PromptEncoder(
        tokenizer,
        rubrics,
        judge=model,
        # The label is a token too.
        max_tokens=min(options.max_tokens or context, context) - 1,
        special_ids=tokenizer.special_ids,
        added_contents=tokenizer.added_contents,
    )
    for rubric in rubrics:
        for question, asked in enumerate(rubric.questions):
            labels = encoder.labels(rubric, question)
            for text in (rubric.prefix, *(asked.suffix + label for label in asked.labels)):
                body = {"model": model, "prompt": text, "add_special_tokens": False}
                theirs = (await server.post("/tokenize", body)).get("tokens")
                ours = tokenizer(text, add_special_tokens=False)["input_ids"]
                if theirs != ours:
                    raise ConfigError(
                        f"{options.tokenizer} is not the tokenizer that {server.url} serves {model!r} with:"
                        f" it makes {ours[:8]} of {text[:40]!r}, where the server makes {str(theirs)[:60]}"
                    )
            probe = encoder.encode(GradeRequest(rubric, "Hello.", "Hello."), question)
            if isinstance(probe, GradeFailure):
                raise ConfigError(f"rubric {rubric.name!r} cannot be encoded for {model!r}: {probe.message}")
            await probe_labels(server, model, probe.ids, labels)
    return PlainLm(model, encoder, options.label_mass_floor)
