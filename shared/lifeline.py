"""Children that end with their parent, whatever ends the parent.

    python -m shared.lifeline [--on-death TERM] -- COMMAND [ARG ...]

asks the kernel to signal this process when its parent dies, then becomes COMMAND: the request
outlives the exec, so COMMAND may be anything. A group signal does not do: torchrun puts every rank
into a session of its own, and SIGKILL gives a parent no chance to pass anything on.

Linux only. Elsewhere COMMAND runs all the same and only an orderly stop takes it along. The kernel
watches the *thread* that started the child: start children from a thread that lives on.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence

PARENT = "TETHER_LIFELINE_PARENT"
"""Environment variable: the process id that the next lifeline expects as its parent."""

_PR_SET_PDEATHSIG = 1


def command(argv: Sequence[str], *, on_death: signal.Signals = signal.SIGKILL) -> list[str]:
    """`argv` on a lifeline. Start it with `environment()`."""
    name = on_death.name.removeprefix("SIG")
    return [sys.executable, "-m", "shared.lifeline", "--on-death", name, "--", *argv]


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """`base` for a child of this process. PYTHONSAFEPATH: the user's folder may hold a `shared/`."""
    return {**base, PARENT: str(os.getpid()), "PYTHONSAFEPATH": "1"}


def die_with_parent(on_death: signal.Signals = signal.SIGKILL) -> None:
    """From now on the parent's death sends this process `on_death`. Exits if it is dead already."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(on_death), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    expected = os.environ.get(PARENT)
    if expected is not None and int(expected) != os.getppid():
        # The parent died before the request was in; nobody would signal us any more.
        sys.exit(f"lifeline: the parent {expected} is gone")


def main(arguments: Sequence[str]) -> None:
    head, mark, argv = list(arguments), "--", list[str]()
    if mark in head:
        at = head.index(mark)
        head, argv = head[:at], head[at + 1 :]
    if not argv or (head and (len(head) != 2 or head[0] != "--on-death")):
        sys.exit("usage: python -m shared.lifeline [--on-death TERM] -- COMMAND [ARG ...]")
    die_with_parent(signal.Signals[f"SIG{head[1]}"] if head else signal.SIGKILL)
    os.environ[PARENT] = str(os.getpid())
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main(sys.argv[1:])
