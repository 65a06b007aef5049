"""Judges that vLLM serves, over HTTP. What the judge is asked and how it is read is its form's."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import httpx

from judge_service.backends.arrival import first_there, run_apart
from judge_service.backends.base import BackendInfo, Grade, GradeFailure, GradeRequest
from judge_service.backends.harmony import HarmonyOptions, open_harmony
from judge_service.backends.plain_lm import PlainOptions, open_plain_lm
from judge_service.backends.pool import BadRequest, ItemFailed, Pool, PoolOptions, Server, ServerLost
from shared.errors import ConfigError
from shared.logs import fields
from shared.rubrics.rubric import Rubric
from shared.wire import ScoreKind

logger = logging.getLogger(__name__)

LOOK_OVER_S = 30.0
"""Between two looks at what the servers say they serve."""

USUAL_BATCH = 32


class Form(Protocol):
    """How one kind of judge is asked. Opened by questions to a server; holds nothing but what it learned."""

    async def grade(self, server: Server, request: GradeRequest) -> Grade | GradeFailure:
        """Raises ItemFailed, BadRequest or ServerLost."""
        ...


@dataclass(frozen=True)
class VllmOptions:
    pool: PoolOptions
    form: PlainOptions | HarmonyOptions
    rubrics: tuple[Rubric, ...]
    model: str | None = None
    """As vLLM calls it; None: the only one it serves."""
    name: str | None = None
    """As verdicts call it; None: as vLLM does."""
    boot_s: float = 900.0
    """How long a server may take until it serves: large models load for minutes."""


@dataclass(frozen=True)
class Served:
    """What was found when the backend opened."""

    model: str
    form: Form
    servers: dict[str, tuple[str | None, str | None]]
    """URL -> what it serves, its fingerprint; of those that were there."""


class VllmBackend:
    def __init__(
        self, options: VllmOptions, served: Served, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._options = options
        self._model = served.model
        self._form = served.form
        self._pool = Pool(options.pool, self._admit, transport)
        for server in self._pool.servers:
            if server.url in served.servers:
                server.serves, server.fingerprint = served.servers[server.url]
            else:
                server.retry_at = time.monotonic()
        self._looked_at = time.monotonic()

    @property
    def info(self) -> BackendInfo:
        places = self._options.pool.in_flight * len(self._pool.servers)
        revisions = {f"{s.serves} {s.fingerprint or ''}".strip() for s in self._pool.servers if s.serves}
        return BackendInfo(
            kind="vllm",
            model=self._options.name or self._model,
            score_kind=ScoreKind.LABEL_PROBABILITY,
            # One more than fill the servers, so that none runs dry between two.
            concurrency=places // USUAL_BATCH + 1,
            revision=" | ".join(sorted(revisions)) or None,
        )

    async def judge(self, batch: Sequence[GradeRequest]) -> list[Grade | GradeFailure]:
        if time.monotonic() - self._looked_at > LOOK_OVER_S:
            self._looked_at = time.monotonic()
            await self._pool.look_over()
        # All run to their ends, so that none goes on alone behind a batch that was given back.
        answers = await asyncio.gather(*(self._grade(request) for request in batch), return_exceptions=True)
        done: list[Grade | GradeFailure] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            done.append(answer)
        return done

    async def close(self) -> None:
        await self._pool.close()

    async def _grade(self, request: GradeRequest) -> Grade | GradeFailure:
        try:
            return await self._pool.run(lambda server: self._form.grade(server, request))
        except ItemFailed as error:
            return error.failure

    async def _admit(self, server: Server) -> None:
        await server.check_health()
        await read_model(server, self._model)


def open_vllm(options: VllmOptions, transport: httpx.AsyncBaseTransport | None = None) -> VllmBackend:
    """Waits until a server is there, and looks at what it serves.

    Raises:
        ConfigError: what is served cannot be read as the form needs it.
        ServiceError: no server came up in time.
    """
    return VllmBackend(options, run_apart(_open(options, transport)), transport)


async def _open(options: VllmOptions, transport: httpx.AsyncBaseTransport | None) -> Served:
    async def admit(server: Server) -> None:
        await read_model(server, options.model)

    pool = Pool(options.pool, admit, transport)
    try:
        server = await first_there(pool, "/v1/models", options.boot_s)
        try:
            model, context = await read_model(server, options.model)
            form = await _open_form(server, model, context, options)
        except (ServerLost, ItemFailed, BadRequest) as error:
            detail = error.detail if isinstance(error, BadRequest) else ""
            raise ConfigError(
                f"the judge at {server.url} cannot be used: {error} {detail}".rstrip()
            ) from error
        for other in pool.servers:
            if other is not server:
                await _read_if_there(other, model)
        return Served(model, form, {s.url: (s.serves, s.fingerprint) for s in pool.servers if s.serves})
    finally:
        await pool.close()


async def _open_form(server: Server, model: str, context: int, options: VllmOptions) -> Form:
    match options.form:
        case PlainOptions():
            return await open_plain_lm(server, model, context, options.form, options.rubrics)
        case HarmonyOptions():
            return await open_harmony(server, model, context, options.form, options.rubrics)


async def _read_if_there(server: Server, model: str) -> None:
    try:
        async with asyncio.timeout(10):
            await read_model(server, model)
    except (ServerLost, ItemFailed, BadRequest, TimeoutError) as error:
        logger.warning("a judge server is not there yet", extra=fields(url=server.url, why=str(error)))


async def read_model(server: Server, wanted: str | None) -> tuple[str, int]:
    """The model's name there and its context in tokens; notes at the server what it serves.

    Raises:
        ServerLost: the model is not there.
    """
    said = (await server.get("/v1/models")).get("data")
    cards = [card for card in said if isinstance(card, dict)] if isinstance(said, list) else []
    if wanted is None and len(cards) == 1:
        [card] = cards
    else:
        card = next((card for card in cards if card.get("id") == wanted), {})
    name, context = card.get("id"), card.get("max_model_len")
    if not isinstance(name, str) or not isinstance(context, int):
        names = ", ".join(str(card.get("id")) for card in cards) or "nothing"
        raise ServerLost(
            f"{server.url} serves {names}, not {wanted or 'one model alone'}; name it by --model"
        )
    version = (await server.get("/version")).get("version")
    server.serves = f"{card.get('root') or name} ({context} tokens, vllm {version})"
    return name, context
