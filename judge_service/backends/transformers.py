"""A causal language model in this process, read by the probabilities of its label tokens."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from judge_service.backends.base import BackendError, BackendInfo, Grade, GradeFailure, GradeRequest
from shared.errors import ConfigError
from shared.rubrics.encoding import encode_prompt, encode_text, label_ids
from shared.rubrics.rubric import Rubric, read_labels, render
from shared.wire import FailureCode, ScoreKind

MICRO_BATCH_TOKENS = 8192
"""Most tokens, padding included, that go through the model at once."""


@dataclass(frozen=True)
class TransformersOptions:
    path: str
    """A folder, or the name of a model that the hub or its cache has."""
    name: str
    """As verdicts call it."""
    rubrics: tuple[Rubric, ...]
    device: str = "auto"
    threads: int | None = None
    """CPU threads; None: torch's own choice."""
    label_mass_floor: float = 0.5
    """Less probability on the five labels together is no answer: `failed: parse_error`."""
    max_tokens: int | None = None
    """None: the model's context."""


class TransformersBackend:
    """Loads at once; nothing is judged by a model whose labels cannot be read.

    Raises:
        ConfigError: the model cannot be loaded, a rubric's labels are not five distinct tokens, or a
            rubric leaves no room in the context.
    """

    def __init__(self, options: TransformersOptions) -> None:
        self._options = options
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._device = _device(options.device)
        self._tokenizer, self._model = _load(options.path, self._device)
        self._max_tokens = options.max_tokens or _context_length(self._model, options.path)
        self._specials = _special_ids(self._tokenizer)
        self._labels = {rubric.name: label_ids(self._tokenizer, rubric) for rubric in options.rubrics}
        self._own_specials = {rubric.name: self._check_rubric(rubric) for rubric in options.rubrics}
        # One thread: a second batch would only slow the first, and the tokenizer keeps state in a call.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="judge-model")

    @property
    def info(self) -> BackendInfo:
        return BackendInfo(
            kind="transformers",
            model=self._options.name,
            score_kind=ScoreKind.LABEL_PROBABILITY,
            concurrency=1,
        )

    async def judge(self, batch: Sequence[GradeRequest]) -> list[Grade | GradeFailure]:
        # In a thread, so that this process goes on keeping its leases alive.
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._judge, batch)

    async def close(self) -> None:
        self._thread.shutdown(wait=True)

    def _judge(self, batch: Sequence[GradeRequest]) -> list[Grade | GradeFailure]:
        answers: list[Grade | GradeFailure | None] = [None] * len(batch)
        prompts: dict[int, list[int]] = {}
        for index, request in enumerate(batch):
            encoded = self.encode(request)
            if isinstance(encoded, GradeFailure):
                answers[index] = encoded
            else:
                prompts[index] = encoded
        for group in micro_batches({i: len(ids) for i, ids in prompts.items()}, MICRO_BATCH_TOKENS):
            logprobs = self._last_logprobs([prompts[index] for index in group])
            for index, row in zip(group, logprobs, strict=True):
                labels = self._labels[batch[index].rubric.name]
                answers[index] = read_grade(
                    [float(row[token]) for token in labels], self._options.label_mass_floor
                )
        return [answer for answer in answers if answer is not None]

    def encode(self, request: GradeRequest) -> list[int] | GradeFailure:
        """The prompt's token ids; the label is read right after the last."""
        segments = render(request.rubric, request.prompt, request.response, nonce=secrets.token_hex(8))
        ids = encode_prompt(self._tokenizer, segments, max_tokens=self._max_tokens)
        # Encoding splits special tokens in graded text; a tokenizer that does not honour that is caught.
        if self._count_specials(ids) != self._own_specials[request.rubric.name]:
            return GradeFailure(FailureCode.SERVER_ERROR, "the graded text became special tokens")
        return ids

    @torch.inference_mode()
    def _last_logprobs(self, rows: list[list[int]]) -> torch.Tensor:
        """[rows, vocabulary] log-probabilities of the next token, fp32 on the CPU."""
        width = max(len(ids) for ids in rows)
        # Padded on the left, so that every row's answer is at the last position and only that one
        # goes through the head.
        pad = self._tokenizer.pad_token_id or 0
        input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in rows])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in rows])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        try:
            logits = self._model(
                input_ids=input_ids.to(self._device),
                attention_mask=mask.to(self._device),
                position_ids=positions.to(self._device),
                logits_to_keep=1,
                use_cache=False,
            ).logits
        except RuntimeError as error:
            # torch's own, out of memory among them.
            raise BackendError(f"the model failed on {len(rows)} rows of {width} tokens: {error}") from error
        return torch.log_softmax(logits[:, -1].float(), dim=-1).cpu()

    def _count_specials(self, ids: list[int]) -> int:
        return sum(token in self._specials for token in ids)

    def _check_rubric(self, rubric: Rubric) -> int:
        """How many special tokens its prompts hold. Raises ConfigError where it cannot be trusted."""
        try:
            ids = encode_prompt(self._tokenizer, render(rubric, "", ""), max_tokens=self._max_tokens)
        except ValueError as error:
            raise ConfigError(
                f"rubric {rubric.name!r} does not fit judge {self._options.path}: {error}"
            ) from error
        added = self._tokenizer.added_tokens_decoder
        for token in set(ids) & added.keys():
            if token in encode_text(self._tokenizer, added[token].content, trusted=False):
                raise ConfigError(
                    f"rubric {rubric.name!r} relies on the token {added[token].content!r}, which graded text"
                    f" can write: judge {self._options.path} must have it as a special token"
                )
        return self._count_specials(ids)


def read_grade(label_logprobs: Sequence[float], mass_floor: float) -> Grade | GradeFailure:
    """The labels' log-probabilities as a grade, or why they are none."""
    try:
        reading = read_labels(label_logprobs)
    except ValueError as error:
        return GradeFailure(FailureCode.PARSE_ERROR, str(error))
    if reading.label_mass < mass_floor:
        return GradeFailure(
            FailureCode.PARSE_ERROR,
            f"the labels have probability {reading.label_mass:.3g} together, below the floor {mass_floor:g}",
        )
    return Grade.from_labels(reading)


def micro_batches(lengths: dict[int, int], max_tokens: int) -> list[list[int]]:
    """Keys in groups of like length, each at most `max_tokens` with padding (or one row alone).

    Sorted, so that one long row does not pad all the others.
    """
    groups: list[list[int]] = []
    for key in sorted(lengths, key=lengths.__getitem__):
        # Ascending: this row is the widest of the group it joins.
        if groups and (len(groups[-1]) + 1) * lengths[key] <= max_tokens:
            groups[-1].append(key)
        else:
            groups.append([key])
    return groups


def _special_ids(tokenizer: Any) -> frozenset[int]:
    """What graded text must never become. Not the unknown token, which any text may hold."""
    added = {token for token, what in tokenizer.added_tokens_decoder.items() if what.special}
    return frozenset(added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {wanted!r}; use auto, cpu or cuda") from error


def _load(path: str, device: torch.device) -> tuple[Any, Any]:
    if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        raise ConfigError(f"cannot load the judge's model: there is no folder {path}")
    path = str(Path(path).expanduser()) if path.startswith("~") else path
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"cannot load the judge's model from {path}: {error}") from error
    model.to(device)
    model.eval()
    return tokenizer, model


def _context_length(model: Any, path: str) -> int:
    length = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(length, int):
        raise ConfigError(f"judge {path} does not say how long its context is; set --max-tokens")
    return length
