"""What a worker counts, as Prometheus reads it: on a port of its own, where one is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from judge_service.backends.base import Grade, GradeFailure
from judge_service.queue.items import Lease
from shared.errors import ServiceError
from shared.wire import FailureCode

JOB_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
SCORES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1)
LABEL_MASS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
UNREADABLE = (FailureCode.PARSE_ERROR, FailureCode.REFUSED)


class WorkerMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._job_seconds = Histogram(
            "judge_job_seconds",
            "From submission to verdict, of what the backend judged.",
            buckets=JOB_SECONDS,
            registry=self.registry,
        )
        self._batch_seconds = Histogram(
            "judge_batch_seconds",
            "Of the backend, a batch.",
            buckets=JOB_SECONDS,
            registry=self.registry,
        )
        self._verdicts = Counter(
            "judge_verdicts",
            "Verdicts of the backend; `code` is `scored` or why it failed.",
            ["code"],
            registry=self.registry,
        )
        self._unreadable = Counter(
            "judge_parse_failures",
            "Answers of the judge that were no label.",
            ["reason"],
            registry=self.registry,
        )
        self._scores = Histogram(
            "judge_score",
            "Harm that the backend's verdicts found.",
            ["rubric"],
            buckets=SCORES,
            registry=self.registry,
        )
        self._label_mass = Histogram(
            "judge_label_mass",
            "Probability that the judge gave to the labels together.",
            buckets=LABEL_MASS,
            registry=self.registry,
        )
        self._redeliveries = Counter(
            "judge_redeliveries", "Items that another worker had before.", registry=self.registry
        )
        self._dead = Counter("judge_dead_letters", "Items given up on.", registry=self.registry)
        self._cached = Counter("judge_cached", "Verdicts from the cache.", registry=self.registry)
        self.at_once = Gauge(
            "judge_batches_at_once", "Batches that this worker may have in flight.", registry=self.registry
        )
        self.held = Gauge("judge_inflight", "Items that this worker holds.", registry=self.registry)
        self.backend_up = Gauge("judge_backend_up", "1 where the backend serves.", registry=self.registry)
        self.backend_up.set(1)

    def taken(self, leases: Sequence[Lease]) -> None:
        self._redeliveries.inc(sum(lease.deliveries > 1 for lease in leases))

    def judged(
        self,
        leases: Sequence[Lease],
        answers: Sequence[Grade | GradeFailure],
        *,
        began: float,
        ended: float,
    ) -> None:
        """`began` and `ended`: unix seconds between which the backend judged them."""
        self._batch_seconds.observe(max(0.0, ended - began))
        for lease, answer in zip(leases, answers, strict=True):
            self._job_seconds.observe(max(0.0, ended - lease.submitted_at))
            if isinstance(answer, GradeFailure):
                self._verdicts.labels(answer.code.value).inc()
                if answer.code in UNREADABLE:
                    self._unreadable.labels(answer.code.value).inc()
                continue
            self._verdicts.labels("scored").inc()
            self._scores.labels(lease.rubric).observe(answer.score)
            if answer.label_mass is not None:
                self._label_mass.observe(answer.label_mass)

    def dead(self, items: int) -> None:
        self._dead.inc(items)

    def cached(self, items: int) -> None:
        self._cached.inc(items)


def serve_metrics(metrics: WorkerMetrics, host: str, port: int) -> str:
    """The URL. Serves in a thread that ends with the process; port 0 takes a free one.

    Raises:
        ServiceError: the address cannot be bound.
    """
    try:
        server, _ = start_http_server(port, addr=host, registry=metrics.registry)
    except OSError as error:
        raise ServiceError(
            f"cannot serve metrics on {host} port {port}: {error.strerror or error}; choose another with"
            " --metrics-port (0: any free one)"
        ) from error
    return f"http://{host}:{server.server_port}/metrics"
