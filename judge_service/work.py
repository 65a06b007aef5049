"""A worker as a process: load the backend, say that it is ready, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import signal

from judge_service.backends.build import build_backend
from judge_service.config import WorkerConfig
from judge_service.queue import JudgementQueue, connect
from judge_service.worker import Worker, WorkerSettings
from shared.errors import ServiceError
from shared.processes import print_ready
from shared.redis_keys import JudgeKeys
from shared.rubrics.folder import all_rubrics
from shared.rubrics.rubric import find_rubric


def work(config: WorkerConfig) -> None:
    """Work until SIGTERM or SIGINT.

    Raises:
        ConfigError: the backend cannot load, or a rubric is unknown.
        ServiceError: Redis is away for longer than the deadline.
    """
    try:
        asyncio.run(_work(config))
    except ExceptionGroup as group:
        # What ended one of its tasks; several may have met the same outage.
        if group.split(ServiceError)[1] is not None:
            raise
        raise ServiceError(str(_first(group))) from group


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


async def _work(config: WorkerConfig) -> None:
    known = all_rubrics(config.rubrics_dir)
    rubrics = {name: find_rubric(name, known) for name in config.rubrics}
    backend = build_backend(config.backend, config.faults, tuple(rubrics.values()))
    queue = JudgementQueue(
        connect(config.queue.redis_url),
        JudgeKeys(config.queue.key_prefix),
        limit=config.queue.limit,
        result_ttl_s=config.queue.result_ttl_s,
        cache_ttl_s=config.cache_ttl_s,
    )
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
        ),
    )
    loop = asyncio.get_running_loop()
    for stop in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(stop, worker.drain)
    try:
        await worker.start()
        print_ready("worker", **worker.describe())
        await worker.run()
    finally:
        await backend.close()
        await queue.close()
