"""Which guide a run's settings ask for, and the judge that it asks."""

from __future__ import annotations

from collections.abc import Callable

from shared.errors import ConfigError, DataError
from shared.safety import Adaptive, FixedKl, PolicySource, Sft
from trainer.data.file_scores import known_scores
from trainer.data.rows import ChatRow
from trainer.safety.judge_client import JudgeClient, NoJudge
from trainer.training.constant import ConstantBeta
from trainer.training.distributed import Collective
from trainer.training.guide import JudgedBeta
from trainer.training.order import DataOrder
from trainer.training.recorder import Recorder
from trainer.training.run_spec import RunSpec


def build_guide(
    spec: RunSpec,
    rows: list[ChatRow],
    order: DataOrder,
    collective: Collective,
    recorder: Recorder,
    stopping: Callable[[], bool],
) -> ConstantBeta | JudgedBeta:
    match spec.safety.method:
        case Sft():
            return ConstantBeta(0.0, collective, stopping)
        case FixedKl(beta=beta):
            return ConstantBeta(beta, collective, stopping)
        case Adaptive() as method:
            known = known_scores(rows, _rubric(spec, method)) if spec.trust_file_scores else {}
            return JudgedBeta(
                method,
                rows=rows,
                order=order,
                client=_judge(spec, method, rows, watches=collective.world.rank == 0),
                collective=collective,
                stopping=stopping,
                log=recorder.controller,
                tell=recorder.message,
                known_scores=known,
            )


def _rubric(spec: RunSpec, method: Adaptive) -> str | None:
    return method.rubric or (spec.judge.rubric if spec.judge is not None else None)


def _judge(spec: RunSpec, method: Adaptive, rows: list[ChatRow], *, watches: bool) -> JudgeClient | NoJudge:
    """Raises ConfigError or DataError where a run without a judge would need one."""
    if spec.judge is not None:
        return JudgeClient(
            url=spec.judge.url,
            rubric=_rubric(spec, method) or spec.judge.rubric,
            job_id=spec.job_id,
            deadline_s=method.staleness.deadline_s,
            api_key=spec.judge.api_key,
            watches=watches,
        )
    if not spec.trust_file_scores:
        raise ConfigError(
            "safety.method adaptive asks a judge, but none is configured; give its URL, or a training file"
            ' whose rows carry `harm_score` and scores = "file"'
        )
    if any(isinstance(source, PolicySource) for source in method.sources):
        raise ConfigError(
            "the source `policy` needs a judge while training; without one, set"
            ' safety.method.sources = ["target"]'
        )
    for row in rows:
        if row.harm_score is None:
            raise DataError("the row has no `harm_score`, and no judge is configured", line=row.line)
    return NoJudge()
