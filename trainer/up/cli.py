"""`tether up`: everything on this machine, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from trainer.up.stack import running_stack


def up(
    trainer_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    judge_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8100,
    state_dir: Annotated[
        Path, typer.Option(envvar="TETHER_STATE_DIR", help="Jobs, files, runs and logs.")
    ] = Path("state"),
    judge_url: Annotated[
        str | None, typer.Option(help="A judge that runs elsewhere; none is started here.")
    ] = None,
    judge_workers: Annotated[int, typer.Option(min=1, max=64)] = 1,
    judge_faulty: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC", help="Make the judge fail, for trials: delay_s=0.5,fail=0.1,garbage=0.1,miss=0.3"
        ),
    ] = None,
) -> None:
    """Run the trainer service, the judge and what they need on this machine."""
    asked = _Asked()
    with (
        asked,
        running_stack(
            state_dir,
            trainer_port=trainer_port,
            judge_port=judge_port,
            judge_url=judge_url,
            judge_workers=judge_workers,
            judge_faulty=judge_faulty,
            on_event=lambda said: print(said, flush=True),
        ) as stack,
    ):
        print(f"trainer: {stack.trainer_url}   (OpenAI clients: base_url={stack.trainer_url}/v1)")
        print(f"judge:   {stack.judge_url}")
        print(f"logs:    {stack.logs_dir}   Ctrl-C stops everything.", flush=True)
        asked.ready()
        asked.wait()
        print("stopping", flush=True)


class _Asked:
    """SIGINT and SIGTERM: during the start they interrupt it, afterwards they end the wait. A second one
    ends this process at once, and with it, by their lifelines, every child."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._is_ready = False

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        return kind is KeyboardInterrupt

    def ready(self) -> None:
        self._is_ready = True

    def wait(self) -> None:
        self._event.wait()

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._event.is_set():
            os._exit(130)
        self._event.set()
        if not self._is_ready:
            raise KeyboardInterrupt
