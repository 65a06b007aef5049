"""What the API counts, as Prometheus reads it. Each process serves its own; nothing is shared in files.

What lies in Redis (depth, age, workers) is read at the scrape, so every API process says the same of it:
take the maximum over processes, not the sum.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily

from judge_service.state import RedisHealth, ServiceState
from shared.wire import Priority

# A time of birth beside every counter would double what each scrape carries.
disable_created_metrics()  # type: ignore[no-untyped-call]

REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ApiMetrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "judge_requests", "Requests answered.", ["route", "code"], registry=self._registry
        )
        self._seconds = Histogram(
            "judge_request_seconds",
            "Time to answer, long polls included and event streams not.",
            ["route"],
            buckets=REQUEST_SECONDS,
            registry=self._registry,
        )
        self._submitted = Counter(
            "judge_items_submitted", "Items admitted or known.", ["priority"], registry=self._registry
        )
        self.streams = Gauge("judge_event_streams", "Event streams open.", registry=self._registry)

    def answered(self, route: str, code: int, seconds: float | None) -> None:
        """`route` is the template, not the path: an id would make a series of its own."""
        self._requests.labels(route, str(code)).inc()
        if seconds is not None:
            self._seconds.labels(route).observe(seconds)

    def submitted(self, priority: Priority, items: int) -> None:
        self._submitted.labels(priority.value).inc(items)

    def render(self, state: ServiceState | None, redis: RedisHealth | None = None) -> bytes:
        """`state` is None where Redis could not be read: `judge_redis_up` is 0 then, the rest absent.

        `redis` is None also where Redis does not tell us.
        """
        registry = CollectorRegistry()
        registry.register(_Snapshot(state, redis))
        return generate_latest(self._registry) + generate_latest(registry)


class _Snapshot:
    """One reading of what lies in Redis."""

    def __init__(self, state: ServiceState | None, redis: RedisHealth | None) -> None:
        self._state = state
        self._redis = redis

    def collect(self) -> Iterable[Metric]:
        state = self._state
        yield GaugeMetricFamily("judge_redis_up", "Redis answers.", value=float(state is not None))
        if state is None:
            return
        depth = GaugeMetricFamily("judge_queue_depth", "Items waiting and in flight.", labels=["priority"])
        age = GaugeMetricFamily(
            "judge_queue_oldest_age_seconds", "Age of the oldest item without a verdict.", labels=["priority"]
        )
        inflight = GaugeMetricFamily("judge_inflight", "Items that workers hold.", labels=["priority"])
        for priority, stream in state.streams.items():
            depth.add_metric([priority], stream.depth)
            age.add_metric([priority], stream.oldest_age_s)
            inflight.add_metric([priority], stream.inflight)
        yield from (depth, age, inflight)
        yield GaugeMetricFamily("judge_queue_limit", "Most items that are admitted.", value=state.limit)
        yield GaugeMetricFamily("judge_dead_letters", "Dead letters kept.", value=state.dead_letters)
        yield GaugeMetricFamily("judge_workers", "Workers alive.", value=len(state.workers))
        breakers = GaugeMetricFamily(
            "judge_breaker_open",
            "1 where a worker has stopped taking items; `reason` says why.",
            labels=["worker", "state", "reason"],
        )
        up = GaugeMetricFamily("judge_backend_up", "1 where a worker's backend serves.", labels=["worker"])
        for worker in state.workers:
            name = str(worker.get("worker"))
            breaker = breaker_state(worker)
            breakers.add_metric([name, breaker, breaker_reason(worker)], float(breaker != "closed"))
            up.add_metric([name], float(breaker == "closed" or held(worker)))
        yield from (breakers, up)
        if self._redis is not None:
            yield from _of_redis(self._redis)


def _of_redis(redis: RedisHealth) -> Iterable[Metric]:
    yield GaugeMetricFamily("judge_redis_memory_bytes", "Memory that Redis uses.", value=redis.memory)
    yield GaugeMetricFamily(
        "judge_redis_memory_limit_bytes", "Redis's maxmemory; 0: none.", value=redis.memory_limit
    )
    yield GaugeMetricFamily(
        "judge_redis_durable",
        "1 where Redis keeps an append-only file and could write it last time.",
        value=float(redis.durable),
    )


def held(worker: dict[str, object]) -> bool:
    """An operator lets it take nothing; its backend may be well."""
    match worker.get("breaker"):
        case {"reason": "operator"}:
            return True
        case _:
            return False


def breaker_reason(worker: dict[str, object]) -> str:
    """Empty where the breaker is closed."""
    match worker.get("breaker"):
        case {"reason": str(reason)}:
            return reason
        case _:
            return ""


def breaker_state(worker: dict[str, object]) -> str:
    """As the worker itself says; one that says nothing takes items."""
    match worker.get("breaker"):
        case str(state):
            return state
        case {"state": str(state)}:
            return state
        case _:
            return "closed"
