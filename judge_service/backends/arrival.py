"""The start of a backend whose model is served elsewhere: wait until it is there, then look at it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from judge_service.backends.pool import BadRequest, ItemFailed, Pool, Server, ServerLost
from shared.errors import ConfigError, ServiceError
from shared.logs import fields

logger = logging.getLogger(__name__)

ASK_S = 10.0

T = TypeVar("T")


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Its result, from a loop of its own: the caller may run in one, and may be interrupted."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - it goes on in the caller
            done.set_exception(error)

    # A daemon: a Ctrl-C while it waits for a server ends the process.
    threading.Thread(target=run, name="judge-arrival", daemon=True).start()
    return done.result()


async def first_there(pool: Pool, path: str, boot_s: float) -> Server:
    """The first server that answers `GET path`.

    Raises:
        ConfigError: it refuses (401, 403, 404): waiting would not help.
        ServiceError: none was there in time.
    """
    until, said_at = time.monotonic() + boot_s, 0.0
    while True:
        why = ""
        for server in pool.servers:
            try:
                async with asyncio.timeout(ASK_S):
                    await server.get(path)
                return server
            except BadRequest as error:
                raise ConfigError(f"{server.url}: {error}; check the judge's URL") from error
            except ServerLost as error:
                if error.status in (401, 403, 404, 405):
                    raise ConfigError(f"{error}: check the judge's URL and its key") from error
                why = str(error)
            except ItemFailed as error:
                why = str(error)
            except TimeoutError:
                why = f"{server.url} gave no answer within {ASK_S:g} s"
        if time.monotonic() > until:
            raise ServiceError(f"no judge server was there within {boot_s:g} s: {why}")
        if time.monotonic() - said_at > 15:
            said_at = time.monotonic()
            logger.warning("waiting for the judge's server", extra=fields(why=why))
        await asyncio.sleep(0.5)
