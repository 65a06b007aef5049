"""The API as a process: bind, say that it is ready, stop in order."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
from types import FrameType

import uvicorn

from judge_service import telemetry
from judge_service.api.app import create_app
from judge_service.api.context import Context
from judge_service.config import ApiConfig
from judge_service.queue.streams import JudgementQueue, connect
from shared.errors import ConfigError, ServiceError
from shared.processes import print_ready
from shared.redis_keys import JudgeKeys

GRACE_S = 10
"""Seconds that open requests have at a stop."""


def serve(config: ApiConfig) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ServiceError: the address cannot be bound.
        ConfigError: others than this machine would be served without API keys, or a file is wrong.
    """
    check_reach(config)
    telemetry.configure("tether-judge-api")
    listener = bind(config.host, config.port)
    # uvicorn raises the signal that stopped it once more when it is done; an ordered stop exits 0.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: None)
    try:
        asyncio.run(_serve(config, listener))
    finally:
        telemetry.shutdown()


def check_reach(config: ApiConfig) -> None:
    """Raises ConfigError where a network would be served without asking who it is."""
    if config.keys_file is not None or config.insecure or is_loopback(config.host):
        return
    raise ConfigError(
        f"--host {config.host} lets others than this machine in, and there are no API keys: give --keys-file"
        " (see `tether judge keys add`), or --insecure where the network itself keeps strangers out"
    )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # A name, which may mean any address.


async def _serve(config: ApiConfig, listener: socket.socket) -> None:
    queue = JudgementQueue(
        connect(config.queue.redis_url),
        JudgeKeys(config.queue.key_prefix),
        limit=config.queue.limit,
        result_ttl_s=config.queue.result_ttl_s,
    )
    app = create_app(config, queue)
    settings = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_S, lifespan="on"
    )
    await _Server(settings, app.state.context, url_of(listener, config.host)).serve(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, context: Context, url: str) -> None:
        super().__init__(config)
        self._context = context
        self._url = url
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            print_ready("api", url=self._url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Or a stop would wait for every long poll and event stream.
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._context.drain)
        super().handle_exit(sig, frame)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ServiceError naming the address where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return _listener(host, port, family)
    except OSError as error:
        raise ServiceError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; stop what uses it or choose"
            " another with --port (0: any free one)"
        ) from error


def _listener(host: str, port: int, family: socket.AddressFamily) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by every connection. asyncio would set it only where the protocol number is given,
        # and accepted sockets do not always carry it: without it an answer may wait 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket, host: str) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"
