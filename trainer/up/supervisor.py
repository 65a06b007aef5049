"""Keeps services running: starts them, starts what died again, stops them in order."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.errors import ServiceError
from trainer.jobs.tail import last_lines
from trainer.up.children import Child, Service

logger = logging.getLogger(__name__)

POLL_S = 0.1
FIRST_BACKOFF_S = 0.5
MOST_BACKOFF_S = 30.0
STEADY_S = 60.0
"""A service that ran for this long starts again without the delay that it had earned before."""


@dataclass
class _Kept:
    service: Service
    child: Child | None = None
    born: float = 0.0
    ready: bool = False
    backoff_s: float = FIRST_BACKOFF_S
    again_at: float = 0.0


class Supervisor:
    """Waves of services: a wave starts when the one before is ready; the last to start is the first to stop.

    One thread starts, watches and stops them all: the kernel ties a child to the thread that started it.
    """

    def __init__(self, waves: Sequence[Sequence[Service]], say: Callable[[str], None]) -> None:
        self._waves = [[_Kept(service) for service in wave] for wave in waves]
        self._say = say
        self._stop = threading.Event()
        self._up = threading.Event()
        self._failure: ServiceError | None = ServiceError("the supervisor ended while starting")
        self._thread = threading.Thread(target=self._main, name="supervisor")

    @property
    def pids(self) -> dict[str, int]:
        """Of what runs now."""
        return {
            kept.service.name: kept.child.pid
            for wave in self._waves
            for kept in wave
            if kept.child is not None and kept.child.poll() is None
        }

    def start(self) -> None:
        """Returns when all are ready. Raises ServiceError, with nothing left running, where one is not."""
        self._thread.start()
        try:
            self._up.wait()
        except BaseException:  # Ctrl-C while they start
            self.stop()
            raise
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def stop(self) -> None:
        """In the reverse order of their start. Returns when all have ended."""
        self._stop.set()
        self._thread.join()

    def _main(self) -> None:
        try:
            for wave in self._waves:
                self._start_wave(wave)
            self._failure = None
            self._up.set()
            while not self._stop.wait(POLL_S):
                for wave in self._waves:
                    for kept in wave:
                        self._tend(kept)
        except (ServiceError, OSError) as error:
            self._failure = ServiceError(str(error))
        finally:
            for wave in reversed(self._waves):
                for kept in reversed(wave):
                    if kept.child is not None:
                        kept.child.stop(kept.service.grace_s)
            self._up.set()

    def _start_wave(self, wave: Sequence[_Kept]) -> None:
        for kept in wave:
            if self._stop.is_set():
                raise ServiceError("stopped while starting")
            self._spawn(kept)
        for kept in wave:
            service = kept.service
            while not kept.ready:
                self._look(kept)
                if kept.child is None or kept.child.poll() is not None:
                    status = None if kept.child is None else kept.child.poll()
                    raise ServiceError(
                        _with_log(f"{service.name} ended with status {status} at its start", service)
                    )
                if time.monotonic() - kept.born > service.ready_s:
                    raise ServiceError(
                        _with_log(f"{service.name} was not ready within {service.ready_s:g} s", service)
                    )
                if self._stop.wait(POLL_S / 2):
                    raise ServiceError("stopped while starting")

    def _spawn(self, kept: _Kept) -> None:
        kept.born, kept.ready = time.monotonic(), False
        kept.child = kept.service.spawn()

    def _look(self, kept: _Kept) -> None:
        if not kept.ready and kept.child is not None:
            kept.ready = kept.child.is_ready()

    def _tend(self, kept: _Kept) -> None:
        """Starts it again when it has ended, later each time that it does not last."""
        service, now = kept.service, time.monotonic()
        if kept.child is None:
            if now >= kept.again_at:
                try:
                    self._spawn(kept)
                except ServiceError as error:
                    self._later(kept, f"{service.name} did not start: {error}")
            return
        status = kept.child.poll()
        if status is None:
            was_ready = kept.ready
            self._look(kept)
            if kept.ready and not was_ready:
                self._say(f"{service.name} is back (pid {kept.child.pid})")
            elif not kept.ready and now - kept.born > service.ready_s:
                kept.child.stop(service.grace_s)
            return
        kept.child.stop(0.0)  # reaps it and closes its pipe
        kept.child = None
        if now - kept.born > STEADY_S:
            kept.backoff_s = FIRST_BACKOFF_S
        self._later(kept, f"{service.name} ended with status {status}")

    def _later(self, kept: _Kept, what: str) -> None:
        self._say(f"{what}; starting it again in {kept.backoff_s:g} s (its log: {kept.service.log})")
        kept.again_at = time.monotonic() + kept.backoff_s
        kept.backoff_s = min(MOST_BACKOFF_S, 2 * kept.backoff_s)


def _with_log(what: str, service: Service) -> str:
    return f"{what}. The end of {service.log}:\n{last_lines(service.log) or '(empty)'}"
