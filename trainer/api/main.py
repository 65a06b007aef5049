"""The API's process: `python -m trainer.api.main --state-dir DIR --port 8000`."""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from shared.errors import ServiceError, TetherError
from shared.processes import print_ready
from trainer.api.app import create_app
from trainer.api.config import ApiConfig
from trainer.jobs.layout import Layout
from trainer.jobs.secret import read_secret
from trainer.jobs.store import Store
from trainer.models.registry import registry_path

STOP_WITHIN_S = 5


def serve(
    state_dir: Annotated[Path, typer.Option(envvar="TETHER_STATE_DIR")],
    host: Annotated[str, typer.Option(envvar="TETHER_API_HOST")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="TETHER_API_PORT", min=0, max=65535)] = 8000,
    api_key_file: Annotated[Path | None, typer.Option(envvar="TETHER_API_KEY_FILE")] = None,
    max_file_bytes: Annotated[int, typer.Option(envvar="TETHER_MAX_FILE_BYTES", min=1)] = 512 * 1024 * 1024,
    guard_url: Annotated[str | None, typer.Option(envvar="TETHER_GUARD_URL")] = None,
) -> None:
    """Serve the trainer's API until SIGTERM. Port 0 takes a free one."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    layout = Layout(state_dir.absolute()).create()
    config = ApiConfig(
        state_dir=layout.root,
        models_file=registry_path(layout.root),
        api_key=read_secret(api_key_file),
        max_file_bytes=max_file_bytes,
        guard_url=None if guard_url is None else guard_url.rstrip("/"),
    )
    with bind(host, port) as listener, Store(layout.database) as store:
        bound = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(config, store),
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=STOP_WITHIN_S,
            )
        )
        print_ready("trainer-api", url=f"http://{shown}:{bound}")
        server.run(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ServiceError naming the port where it is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ServiceError(
            f"port {port} on {host} cannot be used ({error}); end what holds it, or choose another port"
        ) from error
    return listener


def main() -> None:
    try:
        typer.run(serve)
    except TetherError as error:
        sys.exit(f"trainer-api: {error}")


if __name__ == "__main__":
    main()
