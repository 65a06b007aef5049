"""Every alert's fault, made to happen: `make chaos` after the queue's part.

On real services under a real Prometheus with our configuration and rules (durations shortened): each fault is
caused, its alert must fire, the runbook's commands are run as the alert gives them, and it must end. Then
every metric that boards and alerts ask for must have been seen. Where there is no Prometheus it says NOT RUN.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import redis
import yaml

from benchmarks.chaos_alerts_judge import BATCH, DEADLY, SLOW_S, Switch
from benchmarks.chaos_alerts_stack import MOST_WORKERS, QUEUE_LIMIT, RULES, Stack, running
from benchmarks.report import Row, write
from trainer.sizing.formula import Judge, Workload, size

WITHIN_S = 180.0
"""From a fault to its alert, and from mending to its end. A job's start takes most of it."""
ONLY_BY_PROMTOOL = ("JobStalled", "CanaryBeyondLimits", "GpuFault")
"""A quarter of an hour of silence, a policy that turns, and a GPU's fault are not caused here."""
NEVER_HERE = {"tether_job_canary_alarm", "tether_job_canary_asr", "tether_job_canary_over_refusal"}
"""These jobs have no canaries; their metrics are tried by the unit tests."""


@dataclass(frozen=True)
class Trial:
    alerts: tuple[str, ...]
    """What must fire. The first one's command mends it, once the cause is gone."""
    cause: Callable[[Stack], None]
    remove: Callable[[Stack], None] = lambda _: None
    """What no command of ours can mend: the judge's model, the disk."""
    tidy: Callable[[Stack], None] = lambda _: None


def killed(*services: str) -> Callable[[Stack], None]:
    def kill(stack: Stack) -> None:
        for service in services:
            stack.kill(service)

    return kill


def switch_on(switch: Switch, then: Callable[[Stack], None]) -> Callable[[Stack], None]:
    def cause(stack: Stack) -> None:
        (stack.switches / switch).touch()
        then(stack)

    return cause


def switch_off(switch: Switch) -> Callable[[Stack], None]:
    return lambda stack: stack.off(switch)


def emptied(stack: Stack) -> None:
    stack.until(lambda: not depth(stack), 120, "the queue is empty")


def depth(stack: Stack) -> float:
    found = stack.query("sum(max by (priority) (judge_queue_depth))")
    return float(found[0]["value"][1]) if found else 1.0


def quick_again(stack: Stack) -> None:
    stack.off(Switch.SLOW)
    emptied(stack)
    stack.shrink()


def half_fail(stack: Stack) -> None:
    (stack.switches / Switch.FAILING).touch()
    for _ in range(8):
        stack.submit(12)
        time.sleep(0.3)


def deadly(stack: Stack) -> None:
    (stack.switches / Switch.FRAGILE).touch()
    stack.submit(1, response=DEADLY)

    def given_up() -> bool:
        stack.restart_the_dead()
        return bool(json.loads(stack.run("tether judge status --json"))["dead_letters"])

    stack.until(given_up, 60, "an item that kills workers is given up")


def redis_command(*words: str) -> Callable[[Stack], None]:
    def cause(stack: Stack) -> None:
        with redis.Redis.from_url(stack.server.url) as client:
            client.execute_command(*words)

    return cause


def little_memory(stack: Stack) -> None:
    with redis.Redis.from_url(stack.server.url) as client:
        used = int(client.info("memory")["used_memory"])
        client.config_set("maxmemory", int(used * 1.15))


# --- jobs --------------------------------------------------------------------------------------------


class Jobs:
    """What the trials on jobs share."""

    def __init__(self, stack: Stack) -> None:
        self._base = stack.offer_base("tiny")
        self._lost = stack.offer_base("lost")
        self._file = stack.upload(4 * 600)
        self.running = ""

    def _body(self, model: str, steps: int, safety: dict[str, Any]) -> dict[str, Any]:
        training = {"steps": steps, "batch_size": 4, "ranks": 1, "adapter": "full"}
        return {"model": model, "training_file": self._file, "safety": safety, "training": training}

    def judged(self, stack: Stack, steps: int, staleness: dict[str, Any]) -> None:
        policy = {"type": "policy", "samples_per_step": 2, "max_new_tokens": 4}
        method = {"type": "adaptive", "sources": [{"type": "target"}, policy], "staleness": staleness}
        self.running = stack.job(self._body("tiny", steps, {"method": method}))

    def trains(self, stack: Stack, beyond: int = 5) -> None:
        stack.until(lambda: len(stack.steps(self.running)) > beyond, WITHIN_S, "the job trains")

    def cancel(self, stack: Stack) -> None:
        stack.trainer.post(f"/v1/fine_tuning/jobs/{self.running}/cancel").raise_for_status()
        stack.until(lambda: stack.status(self.running) == "cancelled", WITHIN_S, "the job is cancelled")

    def succeeds(self, stack: Stack) -> None:
        stack.until(lambda: stack.status(self.running) == "succeeded", WITHIN_S, "the job succeeds")

    def lose_base(self, stack: Stack) -> None:
        self._lost.rename(self._lost.with_suffix(".away"))
        body = self._body("lost", 2, {"method": "sft"})
        (stack.folder / "job.json").write_text(json.dumps(body), encoding="utf-8")
        stack.job(body)

    def find_base(self, _: Stack) -> None:
        self._lost.with_suffix(".away").rename(self._lost)

    def park(self, stack: Stack) -> None:
        killed("judge-api", "judge-worker")(stack)
        self.judged(stack, 8, {})

    def outlive_judge(self, stack: Stack) -> None:
        staleness = {
            "max_staleness": 2, "deadline_s": 1, "overdue": "fail_closed", "max_unread_fraction": 1,
        }  # fmt: skip
        self.judged(stack, 600, staleness)
        self.trains(stack)
        stack.kill("judge-api")


class Slowness:
    """The judge is too slow for a job with one worker and quick enough with four, as the formula says."""

    K = 8

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._step_s = 0.0
        self.rows: list[Row] = []

    def cause(self, stack: Stack) -> None:
        self._jobs.judged(stack, 600, {"max_staleness": self.K})
        self._jobs.trains(stack, beyond=25)
        newest = stack.steps(self._jobs.running)[-15:]
        self._step_s = statistics.median(data["step_s"] - data["wait_s"] for data in newest)
        (stack.switches / Switch.SLOW).touch()

    def look(self, stack: Stack, workers: int) -> None:
        """Compare 20 more steps with what the formula says of so many workers."""
        seen = len(stack.steps(self._jobs.running)) + 5
        self._jobs.trains(stack, beyond=seen + 20)
        newest = stack.steps(self._jobs.running)[-20:]
        free_s = statistics.median(data["step_s"] - data["wait_s"] for data in newest)
        work = Workload(free_s, batch_size=4, max_staleness=self.K, samples_per_step=2)
        told = size(work, Judge(per_s=BATCH / SLOW_S, batch_s=SLOW_S), workers=workers)
        step_s = statistics.mean(data["step_s"] for data in newest)
        said = f"sizing, {workers} workers"
        self.rows += [
            Row(f"{said}: a step, by the formula", told.expected_step_s, "s"),
            Row(f"{said}: a step, measured", step_s, "s"),
            Row(f"{said}: measured over formula", step_s / told.expected_step_s, "", 1.5),
            Row(f"{said}: staleness, by the formula", told.expected_staleness, "steps"),
            Row(f"{said}: staleness, median", statistics.median(d["staleness"] for d in newest), "steps"),
            Row(f"{said}: staleness, greatest", max(d["staleness"] for d in newest), "steps", self.K),
        ]

    def before_mending(self, stack: Stack) -> None:
        self.look(stack, 1)

    def tidy(self, stack: Stack) -> None:
        self.look(stack, MOST_WORKERS)
        self._jobs.cancel(stack)
        stack.off(Switch.SLOW)
        stack.shrink()


def trials(jobs: Jobs, slowness: Slowness) -> Iterator[Trial]:
    full = int(QUEUE_LIMIT * 0.98)
    yield Trial(("JudgeApiAway",), killed("judge-api"))
    yield Trial(("JudgeRedisAway",), killed("redis"))
    yield Trial(("JudgeWorkersAway",), killed("judge-worker"))
    yield Trial(
        ("JudgeBreakerOpen", "JudgeTakesNothing"),
        switch_on(Switch.AWAY, lambda stack: stack.submit(1)),
        switch_off(Switch.AWAY),
        emptied,
    )
    yield Trial(("JudgeUntrusted",), switch_on(Switch.INVERTED, lambda _: None), switch_off(Switch.INVERTED))
    yield Trial(("JudgeHeld",), lambda stack: print(stack.run("tether judge breaker open").strip()))
    yield Trial(
        ("JudgeOldestItem", "JudgeQueueNearlyFull"),
        switch_on(Switch.SLOW, lambda stack: stack.submit(full)),
        tidy=quick_again,
    )
    yield Trial(("JudgeDeadLetters",), deadly, switch_off(Switch.FRAGILE), Stack.restart_the_dead)
    yield Trial(("JudgeVerdictsFail",), half_fail)
    yield Trial(("JudgeRedisMemory",), little_memory)
    yield Trial(("JudgeRedisNotDurable",), redis_command("CONFIG", "SET", "appendonly", "no"))
    yield Trial(("TrainerApiAway",), killed("trainer-api"))
    yield Trial(("RunnersAway",), lambda stack: stack.stop_service("runner"))
    yield Trial(("JobFailed",), jobs.lose_base, jobs.find_base)
    yield Trial(("JobsParked",), jobs.park, tidy=jobs.succeeds)
    yield Trial(("BoundBroken",), jobs.outlive_judge, tidy=jobs.cancel)
    yield Trial(
        ("StalenessAtBound", "StepsWaitForJudge"), slowness.cause, slowness.before_mending, slowness.tidy
    )


# --- one trial ---------------------------------------------------------------------------------------


def rows_of(stack: Stack, trial: Trial, notes: dict[str, dict[str, str]]) -> Iterator[Row]:
    name = " + ".join(trial.alerts)
    print(f"{name} ...", flush=True)
    wanted = set(trial.alerts)
    try:
        stack.until(lambda: not stack.firing() & wanted, WITHIN_S, f"{name}: quiet before")
        trial.cause(stack)
        fired = stack.until(lambda: wanted <= stack.firing(), WITHIN_S, f"{name}: fires")
        yield Row(f"{name}: fires after", fired, "s", WITHIN_S)
        for alert in trial.alerts:
            print(f"  $ {notes[alert]['command']}\n{indented(stack.run(notes[alert]['command']))}")
        lasted = wanted <= stack.firing()
        yield Row(f"{name}: still fires before it is mended", lasted, "", 1, "higher")
        trial.remove(stack)
        for command in dict.fromkeys(notes[alert]["mend"] for alert in trial.alerts):
            print(f"  $ {command}\n{indented(stack.run(command))}", flush=True)
        ended = stack.until(lambda: not wanted & stack.firing(), WITHIN_S, f"{name}: ends")
        yield Row(f"{name}: ends after", ended, "s", WITHIN_S)
        trial.tidy(stack)
    except (TimeoutError, subprocess.CalledProcessError, httpx.HTTPError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
        print(f"  FAILED: {error} {said}; firing: {sorted(stack.firing())}", flush=True)
        yield Row(f"{name}: not shown", 1, "failures", 0)
        stack.repair()


def indented(text: str) -> str:
    lines = text.strip().splitlines()
    shown = lines[:6] + ([f"({len(lines) - 6} more lines)"] if len(lines) > 6 else [])
    return "\n".join(f"    {line[:150]}" for line in shown)


def never_seen(stack: Stack) -> list[str]:
    """Own metrics on boards and in alerts that Prometheus has never scraped in all this."""
    found = stack.prometheus.get("/api/v1/label/__name__/values").json()["data"]
    return sorted(asked_for() - set(found) - NEVER_HERE)


def asked_for() -> set[str]:
    import promql_parser

    names: set[str] = set()

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector) and node.name:
            names.add(node.name)
        return True

    for expression in expressions():
        filled = expression.replace("$__rate_interval", "5m").replace("$__range", "5m")
        promql_parser.walk(promql_parser.parse(filled.replace("$job_id", ".*")), visit)
    return {name for name in names if name.startswith(("judge_", "tether_"))}


def expressions() -> Iterable[str]:
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for board in (RULES.parents[1] / "grafana" / "dashboards").glob("*.json"):
        for panel in json.loads(board.read_text(encoding="utf-8"))["panels"]:
            yield from (target["expr"] for target in panel["targets"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="alerts; default: all that can be caused")
    args = parser.parse_args()
    binary = shutil.which(os.environ.get("PROMETHEUS", "prometheus"))
    if binary is None:
        print("NOT RUN: chaos-alerts (no prometheus; install Debian's, or name one with PROMETHEUS=...)")
        return 0
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    notes = {rule["alert"]: rule["annotations"] for group in rules["groups"] for rule in group["rules"]}
    rows: list[Row] = []
    tried: set[str] = set()
    with (
        tempfile.TemporaryDirectory(prefix="tether-alerts-") as scratch,
        running(Path(scratch), binary) as stack,
    ):
        jobs = Jobs(stack)
        slowness = Slowness(jobs)
        for trial in trials(jobs, slowness):
            if not args.only or set(args.only) & set(trial.alerts):
                tried |= set(trial.alerts)
                rows += rows_of(stack, trial, notes)
        rows += slowness.rows
        if not args.only:
            missing = never_seen(stack)
            print(f"metrics of boards and alerts that were never seen: {', '.join(missing) or 'none'}")
            rows.append(Row("metrics of boards and alerts, never seen", len(missing), "metrics", 0))
            rows.append(
                Row("alerts caused", len(tried), "alerts", len(notes) - len(ONLY_BY_PROMTOOL), "higher")
            )
    return write("chaos_alerts", rows)


if __name__ == "__main__":
    sys.exit(main())
