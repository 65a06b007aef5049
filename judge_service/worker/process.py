"""A worker as a process: load the backend, say that it is ready, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import signal

from judge_service import telemetry
from judge_service.backends.base import Backend
from judge_service.backends.build import build_backend
from judge_service.config import WorkerConfig
from judge_service.queue.streams import JudgementQueue, connect
from judge_service.worker.controls import load_controls
from judge_service.worker.guard import Controls
from judge_service.worker.metrics import WorkerMetrics, serve_metrics
from judge_service.worker.worker import Worker, WorkerSettings
from shared.errors import ServiceError
from shared.processes import print_ready
from shared.redis_keys import JudgeKeys
from shared.rubrics.folder import all_rubrics
from shared.rubrics.rubric import find_rubric


def work(config: WorkerConfig, backend: Backend | None = None) -> None:
    """Work until SIGTERM or SIGINT; a second one hurries it.

    Args:
        backend: instead of the one that the settings name.

    Raises:
        ConfigError: the backend cannot load, a rubric is unknown, or a file of control pairs is wrong.
        ServiceError: Redis is away for longer than the deadline.
    """
    try:
        asyncio.run(_work(config, backend))
    except ExceptionGroup as group:
        # What ended one of its tasks; several may have met the same outage.
        if group.split(ServiceError)[1] is not None:
            raise
        raise ServiceError(str(_first(group))) from group


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


async def _work(config: WorkerConfig, given: Backend | None) -> None:
    telemetry.configure("tether-judge-worker")
    known = all_rubrics(config.rubrics_dir)
    rubrics = {name: find_rubric(name, known) for name in config.rubrics}
    backend = given or build_backend(config.backend, config.faults, tuple(rubrics.values()))
    kind = backend.info.score_kind
    pairs = {name: load_controls(name, kind, config.controls_dir) for name in rubrics}
    queue = JudgementQueue(
        connect(config.queue.redis_url),
        JudgeKeys(config.queue.key_prefix),
        limit=config.queue.limit,
        result_ttl_s=config.queue.result_ttl_s,
        cache_ttl_s=config.cache_ttl_s,
    )
    metrics = WorkerMetrics()
    worker = Worker(
        queue,
        backend,
        rubrics,
        WorkerSettings(
            batch_size=config.batch_size,
            linger_ms=config.linger_ms,
            concurrency=config.concurrency or backend.info.concurrency,
            lease_s=config.lease_s,
            max_deliveries=config.max_deliveries,
            redis_deadline_s=config.redis_deadline_s,
            cache=config.cache_ttl_s > 0,
            grace_s=config.grace_s,
        ),
        Controls(pairs, config.control_s, config.control_deadline_s, trusting=not config.controls),
        metrics=metrics,
    )
    loop = asyncio.get_running_loop()
    for stop in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(stop, worker.drain)
    try:
        await worker.start()
        served = {}
        if config.metrics_port is not None:
            served["metrics"] = serve_metrics(metrics, config.metrics_host, config.metrics_port)
        print_ready("worker", **worker.describe(), **served)
        await worker.run()
    finally:
        await backend.close()
        await queue.close()
        telemetry.shutdown()
