"""One rank of a run: `python -m trainer.training.worker RUN_DIR/run.json`, started by torchrun."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from shared.errors import ConfigError, DataError, TetherError
from shared.jobs import MUTE_REFERENCE, Adaptive, FixedKl, PolicySource, Sft
from trainer.data.canaries import load_canaries
from trainer.data.file_scores import known_scores
from trainer.data.rows import ChatRow
from trainer.safety.canary import group_of
from trainer.safety.judge_client import JudgeClient, NoJudge
from trainer.training import checkpoint
from trainer.training.canaries import CanaryWatch
from trainer.training.critic import Critic
from trainer.training.data import Example, encode_rows, load_rows
from trainer.training.distributed import Collective, World, world_from_environment
from trainer.training.engine import Engine, init_distributed, shutdown
from trainer.training.guide import ConstantBeta, JudgedBeta
from trainer.training.loop import Run, checkpoints_of, train
from trainer.training.model import build_objective, load_tokenizer, precision
from trainer.training.objective import CachedStates
from trainer.training.order import DataOrder, micro_batch_size, plan_steps
from trainer.training.recorder import Recorder
from trainer.training.reference import ReferenceStates, compute_states
from trainer.training.run_spec import (
    REFERENCE,
    Outcome,
    OutcomeError,
    OutcomeStatus,
    RunSpec,
    read_spec,
)
from trainer.training.sampler import InlineSampler


def work(spec: RunSpec) -> Outcome:
    """Runs this rank to the end of the run, and says how it ended. Rank 0 writes it down."""
    world = world_from_environment()
    recorder = Recorder(spec.run_dir, writes=world.rank == 0)
    try:
        outcome = _run(spec, world, recorder)
    except TetherError as error:
        # These are the same on every rank (settings, data, model, a judge that refuses), but for a disk
        # that is full for one: then only this rank's log tells.
        recorder.message("error", str(error))
        if world.rank != 0:
            print(f"rank {world.rank}: {error}", file=sys.stderr, flush=True)
        outcome = Outcome(
            status=OutcomeStatus.FAILED,
            error=OutcomeError(code=error.code, message=str(error)),
            step=0,
            trained_tokens=0,
        )
    recorder.outcome(outcome)
    shutdown()
    return outcome


def _run(spec: RunSpec, world: World, recorder: Recorder) -> Outcome:
    if spec.training.ranks not in (None, world.ranks):
        raise ConfigError(
            f"training.ranks is {spec.training.ranks}, but {world.ranks} processes were started"
        )
    with assembled(spec, world, recorder, _stop_on_sigterm().is_set) as run:
        recorder.message("info", f"training {run.steps} steps on {world.ranks} ranks")
        outcome = train(run)
    if world.rank == 0 and outcome.status in (OutcomeStatus.SUCCEEDED, OutcomeStatus.FAILED):
        shutil.rmtree(spec.run_dir / REFERENCE, ignore_errors=True)
    return outcome


@contextmanager
def assembled(spec: RunSpec, world: World, recorder: Recorder, stopping: Callable[[], bool]) -> Iterator[Run]:
    """All that a run is made of, at its first step or at its latest checkpoint."""
    init_distributed(world)
    collective = Collective(world)
    tokenizer = load_tokenizer(spec.base)
    rows = load_rows(spec.train_file)
    examples = encode_rows(rows, tokenizer, spec.training, spec.base.context_length)
    valid: list[Example] = []
    if spec.valid_file is not None:
        valid = encode_rows(load_rows(spec.valid_file), tokenizer, spec.training, spec.base.context_length)
    _tell_data(recorder, examples, spec)
    lengths = [len(example.ids) for example in examples] if spec.training.group_by_length else None
    order = DataOrder(len(rows), spec.training.batch_size, spec.seed, lengths)
    with closing(_guide(spec, rows, order, collective, recorder, stopping)) as guide:
        found = checkpoint.latest(checkpoints_of(spec))
        state, rank_state = None, dict[str, Any]()
        if found is None:
            guide.start(0)
        else:
            state, rank_state = checkpoint.load(found, rank=world.rank, ranks=world.ranks)
            recorder.message("info", f"going on from the checkpoint at step {state.step}")
            if isinstance(guide, JudgedBeta):
                guide.resume(rank_state["guide"], after_outage=state.parked, step=state.step)
        torch.manual_seed(spec.seed)  # the adapters' first values
        engine = Engine(build_objective(spec), spec.training, world, precision(spec.training))
        critic = _critic(spec, engine, examples, tokenizer, collective)
        if critic is not None and rank_state:
            critic.restore(rank_state["guide"]["probe"])
        # Before the checkpoint is loaded: the policy is the reference now, and never again.
        states = _reference_states(spec, engine, examples, tokenizer, collective, recorder, critic)
        if found is not None:
            engine.load(found)
        if isinstance(guide, JudgedBeta):
            guide.sampler = _sampler(spec, engine, tokenizer, world)
            guide.critic = critic
            if critic is not None and critic.scans:
                critic.read_file(_telling(recorder, "the reference has read the prompts of"))
            guide.scan()
        canaries = _canaries(spec, engine, tokenizer, world, stopping, recorder)
        with closing(canaries) if canaries is not None else nullcontext():
            if canaries is not None and rank_state.get("canaries") is not None:
                canaries.resume(rank_state["canaries"])
            yield Run(
                spec=spec,
                steps=plan_steps(spec.training, len(rows)),
                examples=examples,
                valid=valid,
                order=order,
                engine=engine,
                tokenizer=tokenizer,
                guide=guide,
                collective=collective,
                recorder=recorder,
                states=states,
                canaries=canaries,
                step=state.step if state else 0,
                trained_tokens=state.trained_tokens if state else 0,
            )


def _guide(
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


def _reference_states(
    spec: RunSpec,
    engine: Engine,
    examples: list[Example],
    tokenizer: Any,
    collective: Collective,
    recorder: Recorder,
    critic: Critic | None,
) -> ReferenceStates | None:
    if not isinstance(engine.objective.kind, CachedStates):
        return None
    states = compute_states(
        spec.run_dir / REFERENCE,
        examples,
        engine.objective,
        collective,
        dtype=precision(spec.training),
        micro_batch=micro_batch_size(spec.training, collective.world.ranks),
        pad_id=tokenizer.pad_token_id,
        tell=_telling(recorder, "the reference has read"),
        features=None if critic is None else critic.features,
        read=None if critic is None else critic.put,
    )
    if critic is not None:
        critic.all_are_known()
    return states


def _telling(recorder: Recorder, what: str) -> Callable[[int, int], None]:
    """Of the rows that are done: ten times at most, since each is an event of the job."""
    told = 0

    def tell(done: int, rows: int) -> None:
        nonlocal told
        if done == rows or done - told >= rows / 10:
            told = done
            recorder.message("info", f"{what} {done} of {rows} rows")

    return tell


def _critic(
    spec: RunSpec, engine: Engine, examples: list[Example], tokenizer: Any, collective: Collective
) -> Critic | None:
    method = spec.safety.method
    if not isinstance(method, Adaptive) or method.probe is None:
        return None
    policy: Any = engine.objective.policy
    config = policy.config.get_text_config()
    return Critic(
        method.probe,
        engine=engine,
        examples=examples,
        collective=collective,
        directory=spec.run_dir / REFERENCE,
        pad_id=tokenizer.pad_token_id,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
    )


def _sampler(spec: RunSpec, engine: Engine, tokenizer: object, world: World) -> InlineSampler | None:
    method = spec.safety.method
    if not isinstance(method, Adaptive):
        return None
    if method.reads_reference and not spec.training.reference_speaks:
        raise ConfigError(MUTE_REFERENCE)
    for source in method.sources:
        if isinstance(source, PolicySource):
            return InlineSampler(
                engine,
                tokenizer,
                max_new_tokens=source.max_new_tokens,
                temperature=source.temperature,
                world=world,
                seed=spec.seed,
                max_length=spec.base.context_length,
            )
    return None


def _canaries(
    spec: RunSpec,
    engine: Engine,
    tokenizer: object,
    world: World,
    stopping: Callable[[], bool],
    recorder: Recorder,
) -> CanaryWatch | None:
    if spec.canaries is None:
        return None
    if spec.judge is None:
        raise ConfigError("canaries are set, and no judge is configured that could read the answers")
    rubric = _rubric(spec, spec.safety.method) if isinstance(spec.safety.method, Adaptive) else None
    return CanaryWatch(
        settings=spec.canaries,
        canaries=load_canaries(spec.canaries.file),
        client=JudgeClient(
            url=spec.judge.url,
            rubric=rubric or spec.judge.rubric,
            job_id=group_of(spec.job_id),
            deadline_s=spec.canaries.deadline_s,
            api_key=spec.judge.api_key,
            watches=world.rank == 0,
        ),
        sampler=InlineSampler(
            engine,
            tokenizer,
            max_new_tokens=spec.canaries.max_new_tokens,
            temperature=0.0,
            world=world,
            seed=spec.seed,
            max_length=spec.base.context_length,
        ),
        collective=Collective(world),
        stopping=stopping,
        tell=recorder.message,
    )


def _tell_data(recorder: Recorder, examples: list[Example], spec: RunSpec) -> None:
    cut = [example for example in examples if example.truncated]
    tokens = sum(len(example.ids) for example in examples)
    recorder.message(
        "info", f"{len(examples)} rows, {tokens} tokens", {"rows": len(examples), "tokens": tokens}
    )
    if cut:
        lines = ", ".join(str(example.row.line) for example in cut[:10])
        recorder.message(
            "warn",
            f"{len(cut)} rows are longer than the context and lose the end of their answer:"
            f" lines {lines}{', ...' if len(cut) > 10 else ''}",
            {"truncated_rows": len(cut)},
        )


def _stop_on_sigterm() -> threading.Event:
    stop = threading.Event()

    def handle(_signum: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    return stop


def main(arguments: list[str]) -> int:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    outcome = work(read_spec(Path(arguments[0])))
    return 1 if outcome.status is OutcomeStatus.FAILED else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
