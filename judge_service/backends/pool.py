"""Judge servers over HTTP: the least loaded of several, a lost one set aside until it is well again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from judge_service.backends.base import BackendUnavailable, GradeFailure
from shared.logs import fields
from shared.wire import FailureCode

logger = logging.getLogger(__name__)

CONNECT_S = 5.0
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
HUNG_AFTER = 3
"""So many timeouts in a row and no answer between: a server that hangs calls itself healthy."""

T = TypeVar("T")


class ItemFailed(Exception):
    """One item could not be graded; the server may be well."""

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.failure = GradeFailure(code, message)


class ServerLost(Exception):
    """This server is away (nothing listens, it says 502 or 503), or not what it was (401, 403, 404)."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class BadRequest(Exception):
    """The server calls the request wrong. `detail` may hold graded text: not for verdicts, nor for logs."""

    def __init__(self, status: int, path: str, detail: str) -> None:
        super().__init__(f"{path} answered {status}")
        self.status = status
        self.detail = detail

    def as_failure(self) -> ItemFailed:
        return ItemFailed(FailureCode.SERVER_ERROR, f"the judge's server refused the request: {self}")


class Server:
    """One base URL. Requests hold no state there, so any may be made again."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._client = client
        self.in_flight = 0
        self.taken = 0
        self.timeouts = 0
        self.retry_at: float | None = None
        """Monotonic; None while it is in service."""
        self.pause_s = FIRST_PAUSE_S
        self.serves: str | None = None
        """The model and where it comes from, as the server lists it."""
        self.fingerprint: str | None = None
        """Of the server and its configuration, as its answers say it."""

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer's JSON object.

        Raises:
            ServerLost: try another server.
            BadRequest: a 4xx that is about the request.
            ItemFailed: overloaded (429), timeout (504), server_error (5xx twice), parse_error (no JSON).
        """
        for attempt in (1, 2):
            response = await self._send("POST", path, body)
            # Harmony's parser fails now and then on what it will parse the next time.
            if response.status_code < 500 or response.status_code in (502, 503, 504) or attempt == 2:
                break
        return _json_object(path, response)

    async def get(self, path: str) -> dict[str, Any]:
        """As `post`."""
        return _json_object(path, await self._send("GET", path, None))

    async def check_health(self) -> None:
        """As vLLM has it. Raises ServerLost."""
        status = (await self._send("GET", "/health", None)).status_code
        if status != 200:
            raise ServerLost(f"{self.url}/health answered {status}", status)

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        try:
            return await self._client.request(method, self.url + path, json=body)
        except httpx.HTTPError as error:
            raise ServerLost(f"{self.url}: {type(error).__name__} {error}".strip()) from error
        except UnicodeEncodeError as error:
            raise ItemFailed(FailureCode.SERVER_ERROR, "the text holds half a character") from error


def _json_object(path: str, response: httpx.Response) -> dict[str, Any]:
    status = response.status_code
    if status in (502, 503):
        raise ServerLost(f"{response.url} answered {status}", status)
    if status in (401, 403, 404, 405):
        # It was there and allowed when this backend started.
        raise ServerLost(f"{response.url} answered {status}", status)
    if status == 429:
        raise ItemFailed(FailureCode.OVERLOADED, "the judge's server answered 429")
    if status in (408, 504):
        raise ItemFailed(FailureCode.TIMEOUT, f"the judge's server answered {status}")
    if status >= 500:
        raise ItemFailed(FailureCode.SERVER_ERROR, f"the judge's server answered {status} to {path}")
    if status >= 400:
        raise BadRequest(status, path, response.text[:2000])
    try:
        said = response.json()
    except ValueError as error:
        raise ItemFailed(
            FailureCode.PARSE_ERROR, f"the judge's server answered {status} to {path}, but no JSON"
        ) from error
    if not isinstance(said, dict):
        raise ItemFailed(FailureCode.PARSE_ERROR, f"the judge's server answered no JSON object to {path}")
    return said


@dataclass(frozen=True)
class PoolOptions:
    urls: tuple[str, ...]
    in_flight: int
    """Most items at a server at a time."""
    timeout_s: float
    """For one item, all its requests together."""
    key: str | None = None


class Pool:
    """Takes items to servers. `admit` looks a server over before it serves (again); it raises ServerLost."""

    def __init__(
        self,
        options: PoolOptions,
        admit: Callable[[Server], Awaitable[None]],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._timeout_s = options.timeout_s
        self._admit = admit
        self._client = httpx.AsyncClient(
            headers={} if options.key is None else {"Authorization": f"Bearer {options.key}"},
            # Items have a time limit as a whole; connections are limited by the places below.
            timeout=httpx.Timeout(None, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            transport=transport,
        )
        self.servers = [Server(url, self._client) for url in options.urls]
        self._places = asyncio.Semaphore(options.in_flight * len(options.urls))

    async def run(self, ask: Callable[[Server], Awaitable[T]]) -> T:
        """Do one item at the least loaded server; all over again at another when that one is lost.

        Raises:
            ItemFailed: this item's failure.
            BackendUnavailable: no server is there.
        """
        async with self._places:
            lost: list[str] = []
            while True:
                server = await self._pick(lost)
                server.in_flight += 1
                server.taken += 1
                try:
                    async with asyncio.timeout(self._timeout_s):
                        answer = await ask(server)
                except ServerLost as error:
                    lost.append(str(error))
                    self._lose(server, str(error))
                except BadRequest as error:
                    raise error.as_failure() from error
                except TimeoutError as error:
                    server.timeouts += 1
                    if server.timeouts >= HUNG_AFTER:
                        self._lose(server, f"{server.timeouts} timeouts in a row")
                    message = f"the judge gave no answer within {self._timeout_s:g} s"
                    raise ItemFailed(FailureCode.TIMEOUT, message) from error
                else:
                    server.timeouts = 0
                    server.pause_s = FIRST_PAUSE_S
                    return answer
                finally:
                    server.in_flight -= 1

    async def look_over(self) -> None:
        """Admit every server that is in service anew, and set aside those that are not what they were."""
        await asyncio.gather(*(self._check(s) for s in self.servers if s.retry_at is None))

    async def close(self) -> None:
        await self._client.aclose()

    async def _pick(self, lost: list[str]) -> Server:
        now = time.monotonic()
        for server in self.servers:
            if server.retry_at is not None and server.retry_at <= now:
                # Whoever comes by meanwhile does not ask again.
                server.retry_at = now + server.pause_s
                await self._check(server)
        ready = [server for server in self.servers if server.retry_at is None]
        if not ready:
            why = "; ".join(lost) or "all were lost before"
            raise BackendUnavailable(f"no judge server of {len(self.servers)} is there: {why}")
        return min(ready, key=lambda server: (server.in_flight, server.taken))

    async def _check(self, server: Server) -> None:
        back = server.retry_at is not None
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._admit(server)
        except (TimeoutError, ServerLost, BadRequest, ItemFailed) as error:
            if not back:
                why = str(error) or f"no answer within {CONNECT_S:g} s"
                logger.warning("a judge server is set aside", extra=fields(url=server.url, why=why))
            self._set_aside(server)
        else:
            server.retry_at = None
            if back:
                server.timeouts = 0
                logger.info("a judge server is back", extra=fields(url=server.url))

    def _lose(self, server: Server, why: str) -> None:
        # One outage, however many items were there.
        if server.retry_at is None:
            logger.warning("a judge server is set aside", extra=fields(url=server.url, why=why))
            self._set_aside(server)

    def _set_aside(self, server: Server) -> None:
        server.retry_at = time.monotonic() + server.pause_s
        server.pause_s = min(LONGEST_PAUSE_S, server.pause_s * 2)
