"""How fast the judge service is: `make bench-judge`.

Every ratio is of two things that take turns in one run on one server; the value is the median of the
rounds. The judge is the `rules` backend, which takes microseconds, or one that sleeps. Texts are new each
time, so the cache holds none of them, and its look and its write are part of what is measured.

    batches   submit to verdict over HTTP in batches of 64, one API and one worker process, against two
              processes that do the same stream and key operations by plain redis-py pipelines, with no
              HTTP, no checks and no verdicts made
    singles   submissions of one item a second, against a bare FastAPI route that checks the same body
    latency   from a submission of one item to its verdict, less what the judge took; beside it the same
              item through the bare pipelines, which says how busy the machine is
    peers     the same items as no-op tasks of taskiq-redis and streaq, one worker process each
    scaling   1, 2 and 4 workers with a judge that sleeps 50 ms
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

from benchmarks.judge_bare import BareProducer, bare_batches
from benchmarks.judge_load import Answer, bodies, closed_loop, texts
from benchmarks.judge_peers import streaq_rate, taskiq_rate
from benchmarks.report import Row, write
from shared.embedded_redis import running_redis
from shared.processes import Child, start_module
from shared.redis_keys import JudgeKeys

PATH = "/v1/judgements"
SIZE = 64
ROUNDS = 5
BATCHES = 100
"""A round; 6,400 items."""
OUTSTANDING = 8
"""Batches."""
SINGLES = 3000
SINGLE_CONNECTIONS = 32
LATENCIES = 200
LATENCY_ROUNDS = 5
PEER_ITEMS = 3000
PEER_ROUNDS = 3
DELAY_S = 0.05
SLEEPING_BATCH = 8
SLEEPING = (
    *("--faulty", f"delay_s={DELAY_S}"),
    *("--concurrency", "2", "--batch-size", f"{SLEEPING_BATCH}"),
)
SLEEPING_RATE = 2 * SLEEPING_BATCH / DELAY_S
"""Items a second that a sleeping worker could do if it did nothing else."""
SCALING_S = 4.0
SCALING_ROUNDS = 3


def start_bare(*args: str) -> Child:
    """What the judge is measured against; this package is not installed with ours."""
    root = str(Path(__file__).resolve().parents[1])
    return start_module("benchmarks.judge_bare", args, env={"PYTHONPATH": root})


class Judge:
    """One API, and workers that come and go."""

    def __init__(self, redis_url: str, scratch: Path) -> None:
        self._env = {"REDIS_URL": redis_url, "OMP_NUM_THREADS": "1"}
        self._log = scratch / "judge.log"
        self.api = self._start("api", "--port", "0", "--log-level", "warning")
        self.url: str = self.api.ready["url"]

    def _start(self, *args: str) -> Child:
        return start_module("judge_service.cli", args, env=self._env, log=self._log)

    @contextmanager
    def workers(self, count: int, *args: str) -> Iterator[list[Child]]:
        with ExitStack() as stack:
            started = []
            for _ in range(count):
                # A worker logs every batch; at this rate that would be measured too.
                child = self._start("worker", "--backend", "rules", "--log-level", "warning", *args)
                stack.callback(child.stop)
                started.append(child)
            yield started

    def items(self, load: list[bytes], connections: int) -> tuple[float, list[Answer]]:
        return asyncio.run(closed_loop(self.url, PATH, load, connections, expect=(200,)))


def main() -> int:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch, running_redis(Path(scratch) / "redis") as server:
        judge = Judge(server.url, Path(scratch))
        try:
            with judge.workers(1, "--batch-size", str(SIZE)):
                rows += batches(judge, server.url)
                rows += latency(judge, server.url)
                rows += peers(judge, server.url)
            rows += singles(judge, server.url)
            rows += scaling(judge)
        finally:
            judge.api.stop()
    return write("judge", rows)


def batches(judge: Judge, redis_url: str) -> list[Row]:
    consumer = start_bare("redis", redis_url)
    producer = BareProducer(redis_url)
    ours, bare = [], []
    try:
        for number in range(ROUNDS + 1):
            load = bodies(BATCHES, SIZE, number, wait_s=25)
            took, _ = judge.items(load, OUTSTANDING)
            plain = bare_batches(BATCHES, SIZE, texts(BATCHES * SIZE, number))
            bare_took = producer.run(plain, OUTSTANDING * SIZE)
            # The first round warms both.
            if number:
                ours.append(BATCHES * SIZE / took)
                bare.append(BATCHES * SIZE / bare_took)
    finally:
        producer.close()
        consumer.stop()
    ratios = [one / other for one, other in zip(ours, bare, strict=True)]
    return [
        Row("batches of 64, submit to verdict", statistics.median(ours), "items/s"),
        Row("bare redis-py pipelines", statistics.median(bare), "items/s"),
        Row("batches / bare pipelines", statistics.median(ratios), "", 0.5, "higher"),
        Row("  spread of that ratio", max(ratios) - min(ratios), ""),
    ]


def singles(judge: Judge, redis_url: str) -> list[Row]:
    bare = start_bare("fastapi")
    ours, plain = list[float](), list[float]()
    try:
        for number in range(ROUNDS + 1):
            for url, rates in ((judge.url, ours), (bare.ready["url"], plain)):
                load = bodies(SINGLES, 1, number)
                took, _ = asyncio.run(closed_loop(url, PATH, load, SINGLE_CONNECTIONS, expect=(202,)))
                if number:
                    rates.append(SINGLES / took)
    finally:
        bare.stop()
        drop_queued(redis_url)
    ratios = [one / other for one, other in zip(ours, plain, strict=True)]
    return [
        Row("single submissions", statistics.median(ours), "1/s"),
        Row("bare FastAPI route", statistics.median(plain), "1/s"),
        Row("singles / bare route", statistics.median(ratios), "", 0.3, "higher"),
        Row("  spread of that ratio", max(ratios) - min(ratios), ""),
    ]


def drop_queued(redis_url: str) -> None:
    """Nobody works on what `singles` submits; the streams' groups are made again by the next worker."""
    with redis.Redis.from_url(redis_url) as db:
        db.delete(*JudgeKeys().streams())


def latency(judge: Judge, redis_url: str) -> list[Row]:
    consumer = start_bare("redis", redis_url)
    producer = BareProducer(redis_url)
    added: dict[int, list[float]] = {1: [], 8: []}
    bare: list[float] = []
    try:
        for number in range(LATENCY_ROUNDS):
            for connections, measured in added.items():
                _, answers = judge.items(bodies(LATENCIES, 1, number, wait_s=25), connections)
                measured += map(_added_ms, answers)
            for batch in bare_batches(LATENCIES, 1, texts(LATENCIES, number)):
                bare.append(producer.run([batch], 1) * 1000)
    finally:
        producer.close()
        consumer.stop()
    rows = []
    for connections, measured in added.items():
        name = f"added to the judge, {connections} at a time"
        rows.append(Row(f"{name}: p50", _quantile(measured, 0.5), "ms"))
        rows.append(Row(f"{name}: p99", _quantile(measured, 0.99), "ms"))
    rows.append(Row("bare pipelines, one item: p50", _quantile(bare, 0.5), "ms"))
    rows.append(Row("bare pipelines, one item: p99", _quantile(bare, 0.99), "ms"))
    return rows


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def _added_ms(answer: Answer) -> float:
    [verdict] = json.loads(answer.body)["items"]
    return answer.seconds * 1000 - float(verdict["timings"]["judge_ms"])


def peers(judge: Judge, redis_url: str) -> list[Row]:
    rates: dict[str, list[float]] = {"ours": [], "taskiq": [], "streaq": []}
    workers = [start_bare(name, redis_url) for name in ("taskiq", "streaq")]
    try:
        for number in range(PEER_ROUNDS + 1):
            seed = 100 + number
            took, _ = judge.items(bodies(PEER_ITEMS // SIZE, SIZE, seed, wait_s=25), OUTSTANDING)
            measured = {
                "ours": PEER_ITEMS // SIZE * SIZE / took,
                "taskiq": asyncio.run(taskiq_rate(redis_url, PEER_ITEMS, seed)),
                "streaq": asyncio.run(streaq_rate(redis_url, PEER_ITEMS, seed)),
            }
            for name, rate in measured.items():
                if number:
                    rates[name].append(rate)
    finally:
        for worker in workers:
            worker.stop()
    rows = []
    for name in ("taskiq", "streaq"):
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates[name], strict=True))
        rows.append(Row(f"{name}, the same items", statistics.median(rates[name]), "items/s"))
        rows.append(Row(f"ours / {name}", ratio, "", 2.0, "higher"))
    return rows


def scaling(judge: Judge) -> list[Row]:
    rates: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for number in range(SCALING_ROUNDS):
        for count, measured in rates.items():
            with judge.workers(count, *SLEEPING):
                size = SLEEPING_BATCH
                # They have begun when they have done something.
                judge.items(bodies(8 * count, size, number, wait_s=25), 8 * count)
                load = bodies(int(SLEEPING_RATE * count * SCALING_S / size), size, number, wait_s=25)
                # Enough at a time that no worker ever waits for work.
                took, _ = judge.items(load, 8 * count)
                measured.append(len(load) * size / took)
    one = statistics.median(rates[1])
    rows = [Row("one worker, a judge of 50 ms", one, f"of {SLEEPING_RATE:g} items/s")]
    for count in (2, 4):
        share = statistics.median(
            many / (count * single) for many, single in zip(rates[count], rates[1], strict=True)
        )
        rows.append(Row(f"{count} workers / {count} x one worker", share, "", 0.95, "higher"))
    return rows


if __name__ == "__main__":
    sys.exit(main())
