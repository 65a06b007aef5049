"""The stack of docker-compose.yml as plain processes under a real Prometheus, for chaos_alerts.py.

The runbook's commands are run as they are written where that can be; `docker compose` is answered here, since
there are no containers: it starts, restarts and scales the processes of the same names.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import redis
import yaml

from benchmarks.chaos_alerts_judge import Switch
from benchmarks.tiny import mixed_rows, tiny_base
from shared import lifeline
from shared.embedded_redis import RunningRedis, running_redis
from shared.processes import Child, start_module, stop_process
from trainer.jobs.layout import Layout
from trainer.models.inspect import describe
from trainer.models.registry import PathSource, register

ROOT = Path(__file__).resolve().parents[1]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
MOST_WORKERS = 4
QUEUE_LIMIT = 1000
SCRAPE = "2s"
"""An API takes a second to say that Redis is away."""
EVALUATE = "500ms"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def hurried(rules: dict[str, Any]) -> dict[str, Any]:
    """The same rules for a quick trial: nothing has to last longer than a second, and windows are short."""
    text = yaml.safe_dump(rules)
    text = re.sub(r"\bfor: \S+", "for: 1s", text)
    text = text.replace("[5m]", "[10s]").replace("> 30", "> 3")
    changed: dict[str, Any] = yaml.safe_load(text)
    return changed


class Stack:
    def __init__(self, server: RunningRedis, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.layout = Layout(folder / "state").create()
        self.switches = folder / "switches"
        self.switches.mkdir()
        self._ports = {name: free_port() for name in ("judge-api", "trainer-api", "prometheus")}
        self._worker_ports = [free_port() for _ in range(MOST_WORKERS)]
        self.children: dict[str, Child] = {}
        self.wanted_workers = 1
        self.judge = httpx.Client(base_url=self._url("judge-api"), timeout=30)
        self.trainer = httpx.Client(base_url=self._url("trainer-api"), timeout=30)
        self.prometheus = httpx.Client(base_url=self._url("prometheus"), timeout=10)
        self._prometheus: subprocess.Popen[bytes] | None = None

    def _url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._ports[name]}"

    # --- services ----------------------------------------------------------------------------------

    def start(self, service: str) -> None:
        """As `docker compose up -d`: what runs is left alone."""
        if service == "redis":
            if self.server.process.poll() is not None:
                self.server.start()
            return
        for name in self._names(service):
            if name not in self.children or self.children[name].process.poll() is not None:
                self.children[name] = self._start(name)

    def _names(self, service: str) -> list[str]:
        if service != "judge-worker":
            return [service]
        return [f"judge-worker-{number}" for number in range(self.wanted_workers)]

    def _start(self, name: str) -> Child:
        env = {"REDIS_URL": self.server.url, "OMP_NUM_THREADS": "1", "CHAOS_SWITCHES": str(self.switches)}
        env["PYTHONPATH"] = str(ROOT)
        log = self.folder / f"{name}.log"
        match name.rsplit("-", 1):
            case ["judge-worker", number]:
                env["CHAOS_METRICS_PORT"] = str(self._worker_ports[int(number)])
                return start_module("benchmarks.chaos_alerts_judge", [], env=env, log=log)
            case ["judge", "api"]:
                args = ["api", "--port", str(self._ports[name]), "--queue-limit", str(QUEUE_LIMIT)]
                return start_module("judge_service.cli", args, env=env, log=log)
            case ["trainer", "api"]:
                args = ["--state-dir", str(self.layout.root), "--port", str(self._ports[name])]
                return start_module("trainer.api.main", args, env=env, log=log)
            case _:
                args = ["--state-dir", str(self.layout.root), "--judge-url", self._url("judge-api")]
                return start_module("trainer.jobs.main", [*args, "--rubric", "demo-v1"], env=env, log=log)

    def kill(self, service: str) -> None:
        if service == "redis":
            self.server.kill()
            return
        for name in self._names(service):
            self.children[name].process.kill()
            self.children[name].stop()

    def stop_service(self, service: str) -> None:
        for name in self._names(service):
            self.children[name].stop(60)

    def restart_the_dead(self) -> None:
        """As `restart: unless-stopped` does for workers."""
        self.start("judge-worker")

    def scale(self, workers: int) -> None:
        self.wanted_workers = workers
        self.start("judge-worker")

    def shrink(self) -> None:
        for number in range(1, MOST_WORKERS):
            if child := self.children.pop(f"judge-worker-{number}", None):
                child.stop(30)
        self.wanted_workers = 1

    @contextlib.contextmanager
    def switched(self, switch: Switch) -> Iterator[None]:
        (self.switches / switch).touch()
        try:
            yield
        finally:
            self.off(switch)

    def off(self, switch: Switch) -> None:
        (self.switches / switch).unlink(missing_ok=True)

    def repair(self) -> None:
        """As it was at the start, for the next trial."""
        for switch in Switch:
            self.off(switch)
        for service in ("redis", "judge-api", "judge-worker", "trainer-api", "runner"):
            self.start(service)
        self.shrink()
        self.run("tether judge breaker close")

    def close(self) -> None:
        for name in sorted(self.children, key=lambda name: name != "runner"):
            self.children[name].stop(60)
        if self._prometheus is not None:
            stop_process(self._prometheus)
        for client in (self.judge, self.trainer, self.prometheus):
            client.close()

    # --- Prometheus --------------------------------------------------------------------------------

    def watch(self, binary: str) -> None:
        """Start Prometheus on our own configuration; only addresses and durations differ."""
        config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": SCRAPE, "evaluation_interval": EVALUATE}
        ports = {
            "judge-api": [self._ports["judge-api"]],
            "trainer-api": [self._ports["trainer-api"]],
            "judge-worker": self._worker_ports,
        }
        jobs = [job for job in config["scrape_configs"] if job["job_name"] in ports]
        for job in jobs:
            del job["dns_sd_configs"]
            job["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in ports[job["job_name"]]]}]
        config["scrape_configs"] = jobs
        folder = self.folder / "prometheus"
        folder.mkdir()
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        rules = hurried(yaml.safe_load(RULES.read_text(encoding="utf-8")))
        (folder / "alerts.yml").write_text(yaml.safe_dump(rules), encoding="utf-8")
        command = [
            binary,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._ports['prometheus']}",
            "--log.level=warn",
        ]
        with (folder / "log").open("wb") as log:
            self._prometheus = subprocess.Popen(
                lifeline.command(command), env=lifeline.environment(os.environ), stdout=log, stderr=log
            )
        self.until(lambda: self.query("up") is not None, 30, "Prometheus answers")

    def query(self, expression: str) -> list[dict[str, Any]] | None:
        """None while Prometheus does not answer."""
        try:
            answer = self.prometheus.get("/api/v1/query", params={"query": expression})
        except httpx.HTTPError:
            return None
        found: list[dict[str, Any]] | None = answer.json()["data"]["result"] if answer.is_success else None
        return found

    def firing(self) -> set[str]:
        answer = self.prometheus.get("/api/v1/alerts").json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in answer if alert["state"] == "firing"}

    def until(self, condition: Callable[[], Any], seconds: float, what: str) -> float:
        """Seconds that it took. Raises TimeoutError."""
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            if condition():
                return time.monotonic() - began
            time.sleep(0.1)
        raise TimeoutError(f"not within {seconds:g} s: {what}")

    # --- commands of the runbook -------------------------------------------------------------------

    def run(self, command: str) -> str:
        """Run one as an operator would; what it printed. Raises CalledProcessError where it fails."""
        words = shlex.split(command)
        match words:
            case ["tether", "judge", *rest]:
                return self._process([sys.executable, "-m", "judge_service.cli", *rest])
            case ["curl", *_]:
                return self._process(["bash", "-c", command])
            case ["docker", "compose", "up", "-d", *rest]:
                if "--scale" in rest:
                    self.scale(int(rest[rest.index("--scale") + 1].partition("=")[2]))
                for service in [word for word in rest if not word.startswith("-") and "=" not in word]:
                    self.start(service)
                return ""
            case ["docker", "compose", "restart", "vllm"]:
                for switch in Switch:  # what stands for the model's server
                    self.off(switch)
                return ""
            case ["docker", "compose", "logs", "--tail", lines, service]:
                return self._log(service, int(lines))
            case ["docker", "compose", "exec", "redis", "sh", "-c", script]:
                with redis.Redis.from_url(self.server.url) as client:
                    return str(client.execute_command(*script.rpartition("redis-cli ")[2].split()))
            case _:
                raise ValueError(f"the trial cannot run {command!r}")

    def _process(self, argv: list[str]) -> str:
        env = {
            **os.environ,
            "REDIS_URL": self.server.url,
            "TETHER_URL": self._url("trainer-api"),
            "TETHER_API_KEY": "none is asked for",
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            argv, cwd=self.folder, env=env, capture_output=True, text=True, check=True, timeout=120
        )
        return done.stdout

    def _log(self, service: str, lines: int) -> str:
        name = self.server.plan.log if service == "redis" else self.folder / f"{self._names(service)[0]}.log"
        return "\n".join(name.read_text("utf-8", "replace").splitlines()[-lines:])

    # --- work --------------------------------------------------------------------------------------

    def submit(self, count: int, response: str = "Answer {}", priority: str = "policy") -> None:
        """Raises httpx.HTTPStatusError where it is refused."""
        made = time.monotonic_ns()
        for first in range(0, count, 250):
            items = [
                {"id": f"{made}-{n}", "prompt": "How to bake bread?", "response": response.format(n)}
                for n in range(first, min(count, first + 250))
            ]
            body = {"items": items, "rubric": "demo-v1", "priority": priority}
            self.judge.post("/v1/judgements", json=body).raise_for_status()

    def offer_base(self, name: str) -> Path:
        folder = self.folder / name
        tiny_base(folder)
        register(self.layout.models, name, describe(name, PathSource(path=folder)))
        return folder

    def upload(self, rows: int) -> str:
        path = mixed_rows(self.folder / "rows.jsonl", rows)
        answer = self.trainer.post(
            "/v1/files", files={"file": ("rows.jsonl", path.read_bytes())}, data={"purpose": "fine-tune"}
        )
        return str(answer.raise_for_status().json()["id"])

    def job(self, body: dict[str, Any]) -> str:
        answer = self.trainer.post("/v1/fine_tuning/jobs", json=body)
        return str(answer.raise_for_status().json()["id"])

    def status(self, job_id: str) -> str:
        return str(self.trainer.get(f"/v1/fine_tuning/jobs/{job_id}").json()["status"])

    def steps(self, job_id: str) -> list[dict[str, Any]]:
        """The steps' metrics, in order."""
        answer = self.trainer.get(f"/v1/fine_tuning/jobs/{job_id}/events", params={"limit": 1000})
        events = [event["data"] for event in answer.json()["data"] if event["type"] == "metrics"]
        return sorted(events, key=lambda data: int(data["step"]))


@contextlib.contextmanager
def running(folder: Path, binary: str) -> Iterator[Stack]:
    with running_redis(folder / "redis") as server:
        stack = Stack(server, folder)
        try:
            for service in ("judge-api", "judge-worker", "trainer-api", "runner"):
                stack.start(service)
            stack.watch(binary)
            yield stack
        finally:
            stack.close()
