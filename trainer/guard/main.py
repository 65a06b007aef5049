"""The guard's process: `python -m trainer.guard.main MODEL --probe DIR --port 8200`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from shared.errors import ConfigError, TetherError
from shared.processes import print_ready
from trainer.jobs.secret import read_secret

STOP_WITHIN_S = 5
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The base's transformers folder.")],
    probe: Annotated[
        Path, typer.Option(envvar="TETHER_PROBE", metavar="DIR", help="What `tether probe fit` wrote.")
    ],
    host: Annotated[str, typer.Option(envvar="TETHER_GUARD_HOST")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="TETHER_GUARD_PORT", min=0, max=65535)] = 8200,
    target_fpr: Annotated[
        float,
        typer.Option(help="Share of harmless prompts that may be flagged, where a request says nothing."),
    ] = 0.01,
    api_key_file: Annotated[
        Path | None, typer.Option(envvar="TETHER_API_KEY_FILE", help="The trainer API's, if it has one.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Serve a network without a key.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch.")] = None,
) -> None:
    """Serve readings over HTTP until SIGTERM. Port 0 takes a free one."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    key = read_secret(api_key_file)
    if key is None and host not in LOOPBACK and not insecure:
        raise ConfigError(
            f"--host {host} is reached from a network: give --api-key-file FILE, or --insecure to let"
            " anyone who reaches it ask"
        )
    # Here, since `tether --help` reads this module, and without the service's packages too.
    import uvicorn

    from trainer.api.main import bind

    with bind(host, port) as listener:
        # The imports of torch take seconds; what is wrong above is said at once.
        import torch

        from trainer.guard.app import create_app
        from trainer.guard.reading import open_guard

        if threads is not None:
            torch.set_num_threads(threads)
        app = create_app(open_guard(model, probe, target_fpr), api_key=key)
        shown = f"[{host}]" if ":" in host else host
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=STOP_WITHIN_S)
        )
        print_ready("guard", url=f"http://{shown}:{listener.getsockname()[1]}")
        server.run(sockets=[listener])


def main() -> None:
    try:
        typer.run(serve)
    except TetherError as error:
        sys.exit(f"guard: {error}")


if __name__ == "__main__":
    main()
