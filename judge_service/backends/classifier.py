"""A sequence-classification model in this process. It knows its own categories of harm, and no rubric.

Every verdict says `classifier`: such scores are not comparable with a rubric's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoModelForSequenceClassification

from judge_service.backends.base import BackendError, BackendInfo, Grade, GradeFailure, GradeRequest
from judge_service.backends.transformers import context_length, load, micro_batches, to_device
from shared.errors import ConfigError
from shared.rubrics.encoding import CUT_MARK, MIN_GRADED_TOKENS, cut_middle, encode_text, fair_shares
from shared.wire import FailureCode, ScoreKind

MICRO_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class ClassifierOptions:
    path: str
    name: str
    harm: Mapping[str, float]
    """Label, by its name or its index -> harm in [0,1]. A label that is not named is harmless."""
    reads: Literal["response", "exchange"] = "exchange"
    """What it is given: the answer alone, or the request and the answer as a pair."""
    device: str = "auto"
    threads: int | None = None
    max_tokens: int | None = None


class ClassifierBackend:
    """Raises ConfigError: the model cannot be loaded, or `harm` names no label of it."""

    def __init__(self, options: ClassifierOptions) -> None:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._options = options
        self._device = to_device(options.device)
        self._tokenizer, self._model = load(AutoModelForSequenceClassification, options.path, self._device)
        config = self._model.config
        labels = {int(index): str(name) for index, name in config.id2label.items()}
        self._labels = [labels[index] for index in sorted(labels)]
        self._harm = harm_of_labels(self._labels, options.harm, options.path)
        self._independent = config.problem_type == "multi_label_classification"
        self._frame = Frame.of(self._tokenizer, pair=options.reads == "exchange")
        self._max_tokens = options.max_tokens or _usable_context(self._model, options.path)
        if self._max_tokens < self._frame.size + MIN_GRADED_TOKENS:
            raise ConfigError(f"classifier {options.path}: {self._max_tokens} tokens leave no room for text")
        if config.pad_token_id is None:
            config.pad_token_id = self._tokenizer.pad_token_id or 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="judge-model")

    @property
    def info(self) -> BackendInfo:
        return BackendInfo("classifier", self._options.name, ScoreKind.CLASSIFIER, concurrency=1)

    async def judge(self, batch: Sequence[GradeRequest]) -> list[Grade | GradeFailure]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._judge, batch)

    async def close(self) -> None:
        self._thread.shutdown(wait=True)

    def _judge(self, batch: Sequence[GradeRequest]) -> list[Grade | GradeFailure]:
        encoded = [self.encode(request) for request in batch]
        rows = [(row.ids, row.segments) for row in encoded]
        answers: dict[int, Grade | GradeFailure] = {}
        for group in micro_batches({i: len(ids) for i, (ids, _) in enumerate(rows)}, MICRO_BATCH_TOKENS):
            logits = self._logits([rows[i] for i in group])
            for i, row in zip(group, logits, strict=True):
                answers[i] = read_logits(
                    row,
                    self._labels,
                    self._harm,
                    independent=self._independent,
                    truncated=encoded[i].truncated,
                )
        return [answers[i] for i in range(len(batch))]

    def encode(self, request: GradeRequest) -> Row:
        """Special tokens in texts are ordinary ones; long texts lose middles."""
        texts = [request.response]
        if self._options.reads == "exchange":
            texts.insert(0, _request_text(request))
        parts = [encode_text(self._tokenizer, text, trusted=False) for text in texts]
        mark = encode_text(self._tokenizer, CUT_MARK, trusted=False)
        lengths = [len(ids) for ids in parts]
        shares = fair_shares(lengths, self._max_tokens - self._frame.size)
        kept = [cut_middle(p, share, mark) for p, share in zip(parts, shares, strict=True)]
        return Row(*self._frame.around(kept), truncated=shares != lengths)

    @torch.inference_mode()
    def _logits(self, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        """[rows, labels], fp32 on the CPU."""
        width = max(len(ids) for ids, _ in rows)
        pad = self._model.config.pad_token_id
        fields = {
            "input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]),
        }
        if "token_type_ids" in self._tokenizer.model_input_names:
            fields["token_type_ids"] = torch.tensor([seg + [0] * (width - len(seg)) for _, seg in rows])
        try:
            logits = self._model(**{key: value.to(self._device) for key, value in fields.items()}).logits
        except RuntimeError as error:
            # torch's own, out of memory among them.
            raise BackendError(f"the model failed on {len(rows)} rows of {width} tokens: {error}") from error
        return torch.as_tensor(logits).float().cpu()


@dataclass(frozen=True)
class Row:
    """One input of the model."""

    ids: list[int]
    segments: list[int]
    """0 or 1: the text that each token belongs to."""
    truncated: bool


@dataclass(frozen=True)
class Frame:
    """What the tokenizer puts before, between and after the texts of one row."""

    before: list[int]
    between: list[int]
    after: list[int]
    pair: bool

    @classmethod
    def of(cls, tokenizer: Any, *, pair: bool) -> Frame:
        """Read off an example. Raises ConfigError where the texts cannot be found again in it."""
        x = encode_text(tokenizer, "x", trusted=True)
        whole = [int(token) for token in tokenizer(*(["x", "x"] if pair else ["x"]))["input_ids"]]
        places = [i for i in range(len(whole) - len(x) + 1) if x and whole[i : i + len(x)] == x]
        if len(places) != 1 + pair:
            raise ConfigError("the classifier's tokenizer does not keep texts apart as expected")
        first, last = places[0], places[-1]
        between = whole[first + len(x) : last] if pair else []
        return cls(whole[:first], between, whole[last + len(x) :], pair)

    @property
    def size(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def around(self, parts: Sequence[list[int]]) -> tuple[list[int], list[int]]:
        """The row's token ids, and 0 or 1 for the segment that each belongs to."""
        first = [*self.before, *parts[0], *self.between]
        if not self.pair:
            ids = [*first, *self.after]
            return ids, [0] * len(ids)
        second = [*parts[1], *self.after]
        return [*first, *second], [0] * len(first) + [1] * len(second)


def read_logits(
    logits: torch.Tensor, labels: Sequence[str], harm: Sequence[float], *, independent: bool, truncated: bool
) -> Grade | GradeFailure:
    """One row of logits -> harm: the worst label's where labels are independent, else the expectation.

    `categories` holds the harmful labels' own probabilities, where there are several.
    """
    if not bool(torch.isfinite(logits).all()):
        return GradeFailure(FailureCode.PARSE_ERROR, "the classifier's logits are not finite")
    chances = (torch.sigmoid(logits) if independent else torch.softmax(logits, dim=-1)).tolist()
    weighed = [chance * weight for chance, weight in zip(chances, harm, strict=True)]
    score = max(weighed) if independent else sum(weighed)
    named = {label: chance for label, chance, weight in zip(labels, chances, harm, strict=True) if weight > 0}
    return Grade(
        min(1.0, max(0.0, score)),
        None,
        categories=named if len(named) > 1 else None,
        truncated=truncated,
    )


def harm_of_labels(labels: Sequence[str], harm: Mapping[str, float], judge: str) -> list[float]:
    """In the order of the labels. Raises ConfigError where a name is not one, or none is harmful."""
    found = [0.0] * len(labels)
    for name, value in harm.items():
        if name in labels:
            index = labels.index(name)
        elif name.isdecimal() and int(name) < len(labels):
            index = int(name)
        else:
            raise ConfigError(f"classifier {judge} has no label {name!r}; it has: {', '.join(labels)}")
        found[index] = value
    if max(found) <= 0:
        raise ConfigError(
            f"say which labels of classifier {judge} are harmful: --harm LABEL=1, of: {', '.join(labels)}"
        )
    return found


def _request_text(request: GradeRequest) -> str:
    if isinstance(request.prompt, str):
        return request.prompt
    return "\n".join(f"{turn.role}: {turn.content}" for turn in request.prompt)


def _usable_context(model: Any, path: str) -> int:
    length = context_length(model, path)
    # RoBERTa counts positions from pad + 1.
    roberta = model.config.model_type in ("roberta", "xlm-roberta", "camembert")
    return length - (model.config.pad_token_id or 0) - 1 if roberta else length
