"""How the whole service stands, read at one moment. Nothing here is per tenant or per row of data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.jobs import JobStatus
from shared.safety import Adaptive, Clock
from trainer.jobs.records import JobRecord
from trainer.jobs.sqlite.database import Database
from trainer.jobs.sqlite.rows import record_of
from trainer.jobs.sqlite.runners import RUNNER_ALIVE_S
from trainer.jobs.states import Hold


@dataclass(frozen=True)
class Bound:
    """K, and by which clock readings are folded."""

    max_staleness: int
    clock: Clock


@dataclass(frozen=True)
class RunningJob:
    id: str
    step: int | None
    """Steps done; None before the first, as `steps`."""
    steps: int | None
    restarts: int
    estimated_finish: float | None
    """Unix seconds, as every time here."""
    last_event: float
    """When it was last heard of."""
    bound: Bound | None
    """None where nothing is judged."""
    metrics: Mapping[str, Any]
    """Of the newest step, as its event holds them; empty before the first."""
    canary_alarm: bool | None
    """Whether the newest reading of the canary prompts forbids publishing that step; None: none is in."""


@dataclass(frozen=True)
class Overview:
    now: float
    statuses: Mapping[JobStatus, int]
    """How many jobs; held ones are not among the queued."""
    held: Mapping[Hold, int]
    failures: Mapping[str, int]
    """By error code: how many jobs ever."""
    last_failure: Mapping[str, float]
    last_success: float
    """0 where no job has succeeded yet."""
    runners: int
    running: tuple[RunningJob, ...]


class Overviews(Database):
    def overview(self) -> Overview:
        now = self._clock()
        with self._transaction("DEFERRED") as db:
            counts = db.execute(
                "SELECT status, hold, count(*) AS n FROM jobs GROUP BY status, hold"
            ).fetchall()
            failed = db.execute(
                "SELECT json_extract(error, '$.code') AS code, count(*) AS n, max(finished_at) AS last"
                " FROM jobs WHERE status = ? GROUP BY code",
                (JobStatus.FAILED.value,),
            ).fetchall()
            succeeded = db.execute(
                "SELECT max(finished_at) AS last FROM jobs WHERE status = ?", (JobStatus.SUCCEEDED.value,)
            ).fetchone()
            runners = db.execute(
                "SELECT count(*) AS n FROM runners WHERE seen_at >= ?", (now - RUNNER_ALIVE_S,)
            ).fetchone()
            running = db.execute(
                "SELECT jobs.*, newest.data AS newest, newest.created_at AS stepped_at,"
                " (SELECT said.created_at FROM events AS said WHERE said.job_id = jobs.id"
                "  ORDER BY said.seq DESC LIMIT 1) AS said_at,"
                " (SELECT coalesce(json_extract(read.data, '$.alarm'), 0) FROM events AS read"
                "  WHERE read.job_id = jobs.id AND read.step IS NULL"
                "  AND json_extract(read.data, '$.canary') IS NOT NULL"
                "  ORDER BY read.seq DESC LIMIT 1) AS canary_alarm"
                " FROM jobs LEFT JOIN events AS newest"
                " ON newest.job_id = jobs.id AND newest.step = jobs.step"
                " WHERE jobs.status = ? ORDER BY jobs.seq",
                (JobStatus.RUNNING.value,),
            ).fetchall()
        statuses = dict.fromkeys(JobStatus, 0)
        held = dict.fromkeys(Hold, 0)
        for row in counts:
            if row["hold"] is not None:
                held[Hold(row["hold"])] += row["n"]
            else:
                statuses[JobStatus(row["status"])] += row["n"]
        return Overview(
            now=now,
            statuses=statuses,
            held=held,
            failures={row["code"]: row["n"] for row in failed},
            last_failure={row["code"]: row["last"] for row in failed},
            last_success=succeeded["last"] or 0.0,
            runners=int(runners["n"]),
            running=tuple(
                _running(
                    record_of(row),
                    {} if row["newest"] is None else json.loads(row["newest"]),
                    max(row["created_at"], row["stepped_at"] or 0.0, row["said_at"] or 0.0),
                    None if row["canary_alarm"] is None else bool(row["canary_alarm"]),
                )
                for row in running
            ),
        )


def _running(
    job: JobRecord, metrics: Mapping[str, Any], last_event: float, canary_alarm: bool | None
) -> RunningJob:
    method = job.request.safety.method
    bound = None
    if isinstance(method, Adaptive):
        bound = Bound(method.staleness.max_staleness, method.staleness.clock)
    return RunningJob(
        id=job.id,
        step=job.step,
        steps=job.steps,
        restarts=job.restarts,
        estimated_finish=job.estimated_finish,
        last_event=last_event,
        bound=bound,
        metrics=metrics,
        canary_alarm=canary_alarm,
    )
