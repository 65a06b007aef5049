"""Nothing is lost: `make chaos`.

Producers submit items while workers, API processes and Redis are killed (SIGKILL) in turn, in an order drawn
by the seed, and started again. Then, over every acknowledged id: it has one terminal verdict, of its own
text, and no other was ever read; the queue was never deeper than its limit; nothing is in flight once the
workers have drained.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import redis

from benchmarks.chaos_judge import ATTEMPTS_SHARE, score_of
from benchmarks.chaos_producers import Producer, Seen
from benchmarks.report import Row, write
from judge_service.queue.streams import GROUP
from shared.embedded_redis import RunningRedis, running_redis
from shared.processes import Child, start_module
from shared.redis_keys import JudgeKeys

VICTIMS = ("worker", "worker", "api", "redis")
"""What is killed in one round, in random order."""


@dataclass(frozen=True)
class Plan:
    items: int
    producers: int
    limit: int
    """Of the queue."""
    workers: int = 3
    apis: int = 2
    delay_s: float = 0.5
    """That the judge takes for a batch of 16."""
    deadline_s: float = 600.0


class Fleet:
    """Redis, APIs and workers, any of which may be killed and comes back where it was."""

    def __init__(self, server: RunningRedis, plan: Plan, logs: Path) -> None:
        self._server = server
        self._plan = plan
        self._logs = logs
        self._env = {
            "REDIS_URL": server.url,
            "OMP_NUM_THREADS": "1",
            "CHAOS_DELAY_S": str(plan.delay_s),
            # Services do not look into the working directory, where this package lies.
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        }
        self.apis = [self._api(0) for _ in range(plan.apis)]
        self.urls = [str(api.ready["url"]) for api in self.apis]
        self.workers = [self._worker() for _ in range(plan.workers)]
        self.kills: Counter[str] = Counter()

    def kill(self, kind: str, draw: random.Random) -> None:
        """SIGKILL one, let it be missed for a moment, and start it again."""
        self.kills[kind] += 1
        if kind == "redis":
            self._server.kill()
            time.sleep(draw.uniform(0.0, 0.5))
            self._server.start()
            return
        children = self.apis if kind == "api" else self.workers
        at = draw.randrange(len(children))
        children[at].process.kill()
        children[at].stop()
        time.sleep(draw.uniform(0.0, 0.5))
        children[at] = self._api(httpx.URL(self.urls[at]).port or 0) if kind == "api" else self._worker()

    def drain(self) -> None:
        for worker in self.workers:
            worker.stop(grace_s=30)

    def stop(self) -> None:
        for child in (*self.apis, *self.workers):
            child.stop()

    def _api(self, port: int) -> Child:
        limit = str(self._plan.limit)
        args = ["api", "--port", str(port), "--queue-limit", limit, "--log-level", "warning"]
        return start_module("judge_service.cli", args, env=self._env, log=self._logs / "api.log")

    def _worker(self) -> Child:
        return start_module("benchmarks.chaos_judge", [], env=self._env, log=self._logs / "worker.log")


class Depth(threading.Thread):
    """Watches how deep the queue gets."""

    def __init__(self, url: str) -> None:
        super().__init__(name="depth", daemon=True)
        self._url = url
        self.deepest = 0
        self.looks = 0
        self.stopping = threading.Event()

    def run(self) -> None:
        with redis.Redis.from_url(self._url, socket_timeout=2) as db:
            while not self.stopping.wait(0.02):
                with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
                    self.deepest = max(self.deepest, depth(db))
                    self.looks += 1


def depth(db: Any) -> int:
    with db.pipeline(transaction=True) as pipe:
        for stream in JudgeKeys().streams():
            pipe.xlen(stream)
        return sum(pipe.execute())


def pending(db: Any) -> int:
    return sum(int(db.xpending(stream, GROUP)["pending"]) for stream in JudgeKeys().streams())


def items_of(producer: int, count: int) -> list[dict[str, str]]:
    return [
        {"id": f"p{producer}-{n}", "prompt": f"Question {n}?", "response": f"Answer {n} of {producer}."}
        for n in range(count)
    ]


@contextlib.contextmanager
def fleet_on(plan: Plan) -> Iterator[tuple[Fleet, RunningRedis]]:
    with (
        tempfile.TemporaryDirectory(prefix="tether-chaos-") as scratch,
        running_redis(Path(scratch) / "redis") as server,
    ):
        fleet = Fleet(server, plan, Path(scratch))
        try:
            yield fleet, server
        finally:
            fleet.stop()


def run_seed(plan: Plan, seed: int) -> list[Row]:
    draw = random.Random(f"{seed}/kills")
    seen = Seen()
    share = -(-plan.items // plan.producers)
    counts = [min(share, plan.items - share * n) for n in range(plan.producers)]
    items = {item["id"]: item for n, count in enumerate(counts) for item in items_of(n, count)}
    began = time.monotonic()
    with fleet_on(plan) as (fleet, server):
        watch = Depth(server.url)
        watch.start()
        producers = [
            Producer(n, items_of(n, count), fleet.urls, seen, seed) for n, count in enumerate(counts)
        ]
        for producer in producers:
            producer.start()
        _kill_until_done(fleet, producers, draw, began + plan.deadline_s)
        late = sum(producer.is_alive() for producer in producers)
        for producer in producers:
            producer.stopping.set()
            producer.join(30)
        _read_all_again(fleet.urls[0], list(items), seen)
        fleet.drain()
        watch.stopping.set()
        watch.join()
        with redis.Redis.from_url(server.url) as db:
            left, in_flight = depth(db), pending(db)
            groups = len(list(db.scan_iter(match=JudgeKeys().group("*"), count=1000)))
    for said in seen.wrong[:5]:
        print(f"  unexpected answer: {said}", file=sys.stderr)
    verdicts = seen.verdicts
    ids = seen.acknowledged

    def rows() -> Iterator[Row]:
        yield Row("acknowledged", len(ids), "items", plan.items, "higher")
        yield Row("without a verdict", len(ids - verdicts.keys()), "items", 0)
        yield Row("unknown after they were acknowledged", len(seen.unknown), "items", 0)
        yield Row("with two different verdicts", len(seen.changed), "items", 0)
        yield Row(
            "with the score of another text",
            sum(foreign(items[i], verdicts[i]) for i in verdicts),
            "items",
            0,
        )
        yield Row("suspect", sum(v.get("suspect", False) for v in verdicts.values()), "items", 0)
        yield Row("ended failed", sum(v["status"] == "failed" for v in verdicts.values()), "items")
        yield Row("deepest queue", watch.deepest, "items", plan.limit)
        yield Row("in the queue after the drain", left, "items", 0)
        yield Row("pending after the drain", in_flight, "items", 0)
        yield Row("groups with unfinished items", groups, "groups", 0)
        yield Row("wrong answers of the API", len(seen.wrong), "answers", 0)
        yield Row("producers that were not done in time", late, "producers", 0)
        yield Row("refusals by a full queue", seen.refused_full, "requests")
        yield Row("requests that met an outage", seen.broken, "requests")
        for kind in sorted(set(VICTIMS)):
            yield Row(f"kills: {kind}", fleet.kills[kind], "kills", 1, "higher")
        yield Row("time", time.monotonic() - began, "s")

    return [Row(f"seed {seed}: {r.name}", r.value, r.unit, r.limit, r.better) for r in rows()]


def _kill_until_done(fleet: Fleet, producers: list[Producer], draw: random.Random, deadline: float) -> None:
    while any(producer.is_alive() for producer in producers) and time.monotonic() < deadline:
        for kind in draw.sample(VICTIMS, len(VICTIMS)):
            # Every kind at least once, however soon the producers are done.
            if fleet.kills[kind] == 0 or any(producer.is_alive() for producer in producers):
                fleet.kill(kind, draw)
                time.sleep(draw.uniform(0.1, 1.0))


def _read_all_again(url: str, ids: list[str], seen: Seen) -> None:
    """What was read once must read the same for good."""
    with httpx.Client(base_url=url, timeout=30) as client:
        for first in range(0, len(ids), 256):
            answer = client.post("/v1/judgements/read", json={"ids": ids[first : first + 256]})
            if answer.status_code != 200:
                seen.wrong.append(f"{answer.status_code} {answer.text[:300]}")
                continue
            for item in answer.json()["items"]:
                seen.verdict(item)


def foreign(item: dict[str, str], verdict: dict[str, Any]) -> bool:
    if verdict["status"] != "scored":
        return False
    return not 0 <= float(verdict["score"]) - score_of(item["response"]) <= ATTEMPTS_SHARE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--producers", type=int, default=32)
    parser.add_argument("--limit", type=int, default=1_500, help="of the queue")
    parser.add_argument("--delay-s", type=float, default=0.5, help="of the judge, for a batch of 16")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    plan = Plan(args.items, args.producers, args.limit, delay_s=args.delay_s)
    return write("chaos", [row for seed in args.seeds for row in run_seed(plan, seed)])


if __name__ == "__main__":
    sys.exit(main())
