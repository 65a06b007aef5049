"""The container engine of this machine, and the stack of docker-compose.yml on it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

ROOT = Path(__file__).resolve().parents[2]
ENGINES = (
    (("docker",), ("docker", "compose")),
    (("podman",), ("podman-compose",)),
    (("podman",), ("podman", "compose")),
)
T = TypeVar("T")


class NoEngine(Exception):
    """Says what was looked for."""


@dataclass(frozen=True)
class Engine:
    containers: tuple[str, ...]
    """Takes docker's subcommands: ps, exec, kill, ..."""
    compose: tuple[str, ...]


def find_engine() -> Engine:
    """TETHER_CONTAINERS and TETHER_COMPOSE, else Docker, else podman. A client without its engine is none.

    Raises NoEngine.
    """
    named = [os.environ.get(name, "") for name in ("TETHER_CONTAINERS", "TETHER_COMPOSE")]
    if all(named):
        return Engine(*(tuple(shlex.split(command)) for command in named))
    if any(named):
        raise NoEngine("TETHER_CONTAINERS and TETHER_COMPOSE go together: give both, or neither")
    for containers, compose in ENGINES:
        if _answers([*containers, "info"]) and _answers([*compose, "version"]):
            return Engine(containers, compose)
    raise NoEngine(
        "no container engine answers: install Docker with its compose plugin, or podman with podman-compose,"
        " or name their commands in TETHER_CONTAINERS and TETHER_COMPOSE"
    )


def _answers(command: Sequence[str]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


@dataclass
class Stack:
    """A project of its own: names, volumes and ports meet no other's."""

    engine: Engine
    logs: Path
    name: str = field(default_factory=lambda: f"tether-test-{uuid4().hex[:8]}")
    trainer_port: int = field(default_factory=lambda: free_port())
    judge_port: int = field(default_factory=lambda: free_port())

    def compose(self, *args: str, timeout_s: float = 300) -> None:
        # One image after the other: at once, they would not find each other's layers, and make them twice.
        settings = {
            "TRAINER_PORT": str(self.trainer_port),
            "JUDGE_PORT": str(self.judge_port),
            "COMPOSE_PARALLEL_LIMIT": "1",
        }
        command = [*self.engine.compose, "-p", self.name, "--profile", "cpu", *args]
        self._run(command, timeout_s, {**os.environ, **settings})

    def containers(self, *args: str, timeout_s: float = 120) -> str:
        return self._run([*self.engine.containers, *args], timeout_s, dict(os.environ))

    def of(self, service: str, *, running: bool = True) -> list[str]:
        """Names of a service's containers, the oldest number first."""
        asked = ["ps", "--format", "{{.Names}}", "--filter", f"label=com.docker.compose.project={self.name}"]
        found = self.containers(*asked, *([] if running else ["--all"])).split()
        # podman-compose joins the parts of a name by _, Docker by -.
        numbered = {name: re.fullmatch(rf"{self.name}[-_]{service}[-_](\d+)", name) for name in found}
        mine = {name: int(match[1]) for name, match in numbered.items() if match}
        return sorted(mine, key=mine.__getitem__)

    def scale(self, service: str, count: int) -> None:
        self.compose("up", "-d", "--no-build", "--no-recreate", "--scale", f"{service}={count}", service)
        # podman-compose adds and never takes away.
        for extra in self.of(service)[count:]:
            self.containers("stop", extra)
            self.containers("rm", extra)

    def kill(self, name: str) -> None:
        """SIGKILL, and started again: a kill by hand is no crash to a restart policy."""
        self.containers("kill", name)
        self.containers("start", name)

    def keep_logs(self) -> None:
        for name in self.containers("ps", "--all", "--format", "{{.Names}}").split():
            if name.startswith(self.name):
                done = subprocess.run(
                    [*self.engine.containers, "logs", name], capture_output=True, timeout=60, check=False
                )
                (self.logs / f"{name}.log").write_bytes(done.stdout + done.stderr)

    def _run(self, command: Sequence[str], timeout_s: float, environment: dict[str, str]) -> str:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        with (self.logs / "commands.log").open("a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(command)}\n{done.stdout}{done.stderr}[{done.returncode}]\n")
        assert done.returncode == 0, f"{shlex.join(command)}: {(done.stdout + done.stderr)[-3000:]}"
        return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    # For scripts that ask whether there is an engine.
    try:
        print(shlex.join(find_engine().compose))
    except NoEngine as error:
        sys.exit(str(error))
