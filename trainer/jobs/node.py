"""`tether node`: lends this machine to the runs of a runner on another."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from shared.errors import ConfigError, TetherError
from shared.processes import print_ready
from trainer.jobs.gathering import Gathering, read_gathering
from trainer.jobs.launcher import RunProcess, TorchrunLauncher, node_log
from trainer.jobs.layout import Layout

POLL_S = 0.5
GRACE_S = 45.0
"""From asking this machine's ranks to end to killing them."""


def node(
    state_dir: Annotated[
        Path, typer.Option(envvar="TETHER_STATE_DIR", help="The runner's, mounted here at the same path.")
    ] = Path("state"),
    address: Annotated[
        str | None, typer.Option(help="Of this machine, as the others reach it; else its host name.")
    ] = None,
) -> None:
    """Join the runs on several machines that the runner of this state directory starts; until SIGTERM.

    The runner is started with --nodes and --rdzv-endpoint; docs/train.md.
    """
    layout = Layout(state_dir.absolute())
    if not layout.runs.is_dir():
        raise ConfigError(
            f"there is no directory of runs at {layout.runs}: mount the runner's state directory"
        )
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    print_ready("node", runs=str(layout.runs))
    serve(layout.runs, TorchrunLauncher(), address, stop)


def serve(runs: Path, launcher: TorchrunLauncher, address: str | None, stop: threading.Event) -> None:
    tried: set[str] = set()
    while not stop.is_set():
        found = _new_gathering(runs, tried)
        if found is None:
            stop.wait(POLL_S)
            continue
        run_dir, gathering = found
        tried.add(gathering.id)
        print(f"joining {run_dir.name} at {gathering.host}:{gathering.port}", flush=True)
        status = _take_part(launcher.join(run_dir, gathering, address), run_dir, gathering, stop)
        print(f"{run_dir.name}: this machine's ranks ended with {status}; {node_log(run_dir)}", flush=True)


def _new_gathering(runs: Path, tried: set[str]) -> tuple[Path, Gathering] | None:
    for note in sorted(runs.glob("*/gathering.json")):
        gathering = read_gathering(note.parent)
        if gathering is not None and gathering.id not in tried:
            return note.parent, gathering
    return None


def _take_part(process: RunProcess, run_dir: Path, gathering: Gathering, stop: threading.Event) -> int | None:
    """Until this machine's ranks have ended: by themselves, because the first machine's did, or because
    this process is asked to."""
    kill_at: float | None = None
    try:
        while process.poll() is None:
            if kill_at is None and (stop.is_set() or read_gathering(run_dir) != gathering):
                process.stop()
                kill_at = time.monotonic() + GRACE_S
            if kill_at is not None and time.monotonic() > kill_at:
                process.kill()
            time.sleep(POLL_S)
    finally:
        if process.poll() is None:
            process.kill()
    return process.poll()


def main() -> None:
    try:
        typer.run(node)
    except TetherError as error:
        sys.exit(f"node: {error}")


if __name__ == "__main__":
    main()
