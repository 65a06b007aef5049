"""Any backend, made worse on purpose: for tests and benchmarks."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from judge_service.backends.base import (
    Backend,
    BackendInfo,
    BackendUnavailable,
    Grade,
    GradeFailure,
    GradeRequest,
)
from shared.errors import ConfigError
from shared.wire import FailureCode, content_hash

DELAYED_CONCURRENCY = 16


class Faults(BaseModel):
    """Written `delay_s=0.5,fail=0.1,seed=1`. What befalls an item depends on the seed and its text alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    delay_s: float = Field(default=0.0, ge=0, le=3600)
    """Seconds that each batch waits before it is judged. It sleeps, and keeps no processor busy."""
    jitter_s: float = Field(default=0.0, ge=0, le=3600)
    """Up to so many seconds more, drawn for each batch."""
    fail: float = Field(default=0.0, ge=0, le=1)
    """Share of items that end `failed: server_error`."""
    garbage: float = Field(default=0.0, ge=0, le=1)
    """Share of items to which the judge answers something that is no label: `failed: parse_error`."""
    miss: float = Field(default=0.0, ge=0, le=1)
    """Share of the harmful items (score >= 0.5) that are judged harmless."""
    alarm: float = Field(default=0.0, ge=0, le=1)
    """Share of the harmless items (score < 0.5) that are judged harmful."""
    say: int | None = Field(default=None, ge=1, le=5)
    """This level to everything, surely."""
    constant: bool = False
    """The same unsure probabilities to everything."""
    away: bool = False
    """As a backend that is not there."""
    only_while: Path | None = None
    """The faults that are there only while this file is."""
    seed: int = 0

    @model_validator(mode="after")
    def _shares_fit(self) -> Faults:
        if self.fail + self.garbage > 1:
            raise ValueError(f"fail {self.fail} and garbage {self.garbage} are more than all items together")
        return self


def parse_faults(spec: str) -> Faults:
    """Raises ConfigError naming the part that is wrong."""
    values: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in spec.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"faults {spec!r}: {part!r} is not of the form name=value")
        values[key.strip()] = value.strip()
    try:
        return Faults.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"faults {spec!r}: {wrong}; there are: {', '.join(Faults.model_fields)}") from error


class FaultyBackend:
    def __init__(self, inner: Backend, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults

    @property
    def info(self) -> BackendInfo:
        inner = self._inner.info
        waits = self._faults.delay_s + self._faults.jitter_s > 0
        concurrency = max(inner.concurrency, DELAYED_CONCURRENCY) if waits else inner.concurrency
        return replace(inner, kind=f"faulty({inner.kind})", concurrency=concurrency, cacheable=False)

    async def judge(self, batch: Sequence[GradeRequest]) -> list[Grade | GradeFailure]:
        faults = self._faults
        if faults.only_while is not None and not faults.only_while.exists():
            return await self._inner.judge(batch)
        if faults.away:
            raise BackendUnavailable("made to be away")
        delay_s = faults.delay_s + faults.jitter_s * (_draw(faults.seed, "jitter", batch[0]) if batch else 0)
        if delay_s > 0:
            await asyncio.sleep(delay_s)
        answers = await self._inner.judge(batch)
        return [spoil(faults, request, answer) for request, answer in zip(batch, answers, strict=True)]

    async def close(self) -> None:
        await self._inner.close()


def spoil(faults: Faults, request: GradeRequest, answer: Grade | GradeFailure) -> Grade | GradeFailure:
    draw = _draw(faults.seed, "answer", request)
    if draw < faults.fail:
        return GradeFailure(FailureCode.SERVER_ERROR, "made to fail")
    if draw < faults.fail + faults.garbage:
        return GradeFailure(FailureCode.PARSE_ERROR, "made to answer with no label")
    if not isinstance(answer, Grade):
        return answer
    if faults.say is not None:
        sure = tuple(float(level == faults.say) for level in range(1, 6))
        return replace(answer, score=(faults.say - 1) / 4, level=faults.say, probabilities=sure)
    if faults.constant:
        return replace(answer, score=0.25, level=1, probabilities=(0.6, 0.1, 0.1, 0.1, 0.1))
    if answer.score >= 0.5 and _draw(faults.seed, "miss", request) < faults.miss:
        blind = None if answer.probabilities is None else (1.0, 0.0, 0.0, 0.0, 0.0)
        return replace(answer, score=0.0, level=1, probabilities=blind)
    if answer.score < 0.5 and _draw(faults.seed, "alarm", request) < faults.alarm:
        alarmed = None if answer.probabilities is None else (0.0, 0.0, 0.0, 0.0, 1.0)
        return replace(answer, score=1.0, level=5, probabilities=alarmed)
    return answer


def _draw(seed: int, what: str, request: GradeRequest) -> float:
    """Uniform in [0,1), the same for the same text in whatever batch it comes."""
    text = content_hash(request.prompt, request.response)
    digest = hashlib.sha256(f"{seed}:{what}:{text}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
