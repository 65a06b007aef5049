"""A causal language model in this process, read by the probabilities of its label tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from judge_service.backends.base import BackendError, BackendInfo, Grade, GradeFailure, GradeRequest
from judge_service.backends.prompting import PromptEncoder
from judge_service.backends.reading import read_grade
from shared.errors import ConfigError
from shared.rubrics.encoding import PromptIds
from shared.rubrics.rubric import Rubric
from shared.wire import ScoreKind

K = TypeVar("K")

Asked = tuple[int, int]
"""(item of the batch, question of its rubric)."""

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
        self._device = to_device(options.device)
        self._tokenizer, self._model = load(AutoModelForCausalLM, options.path, self._device)
        added = self._tokenizer.added_tokens_decoder
        self._encoder = PromptEncoder(
            self._tokenizer,
            options.rubrics,
            judge=options.path,
            max_tokens=options.max_tokens or context_length(self._model, options.path),
            special_ids=_special_ids(self._tokenizer),
            added_contents={token: what.content for token, what in added.items()},
        )
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
        prompts: dict[Asked, PromptIds] = {}
        failed: dict[int, GradeFailure] = {}
        for index, request in enumerate(batch):
            for question in range(len(request.rubric.questions)):
                encoded = self.encode(request, question)
                if isinstance(encoded, GradeFailure):
                    failed[index] = encoded
                else:
                    prompts[index, question] = encoded
        read: dict[Asked, list[float]] = {}
        for group in micro_batches(
            {key: len(prompt.ids) for key, prompt in prompts.items()}, MICRO_BATCH_TOKENS
        ):
            logprobs = self._last_logprobs([prompts[key].ids for key in group])
            for key, row in zip(group, logprobs, strict=True):
                labels = self._encoder.labels(batch[key[0]].rubric, key[1])
                read[key] = [float(row[token]) for token in labels]
        return [
            failed[index]
            if index in failed
            else read_grade(
                request.rubric,
                [read[index, question] for question in range(len(request.rubric.questions))],
                self._options.label_mass_floor,
                truncated=any(
                    prompts[index, question].truncated for question in range(len(request.rubric.questions))
                ),
            )
            for index, request in enumerate(batch)
        ]

    def encode(self, request: GradeRequest, question: int = 0) -> PromptIds | GradeFailure:
        """The prompt's token ids; the label is read right after the last."""
        return self._encoder.encode(request, question)

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


def micro_batches(lengths: Mapping[K, int], max_tokens: int) -> list[list[K]]:
    """Keys in groups of like length, each at most `max_tokens` with padding (or one row alone).

    Sorted, so that one long row does not pad all the others.
    """
    groups: list[list[K]] = []
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


def to_device(wanted: str) -> torch.device:
    """Raises ConfigError."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {wanted!r}; use auto, cpu or cuda") from error


def load(kind: Any, path: str, device: torch.device) -> tuple[Any, Any]:
    """Tokenizer and model, by one of transformers' Auto classes. Raises ConfigError."""
    if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        raise ConfigError(f"cannot load the judge's model: there is no folder {path}")
    path = str(Path(path).expanduser()) if path.startswith("~") else path
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = kind.from_pretrained(path, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"cannot load the judge's model from {path}: {error}") from error
    model.to(device)
    model.eval()
    return tokenizer, model


def context_length(model: Any, path: str) -> int:
    """In tokens. Raises ConfigError where the model does not say."""
    length = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(length, int):
        raise ConfigError(f"judge {path} does not say how long its context is; set --max-tokens")
    return length
