"""All that a run is made of, put together from its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import torch

from shared.errors import ConfigError
from shared.safety import MUTE_REFERENCE, Adaptive, PolicySource
from trainer.data.canaries import load_canaries
from trainer.safety.canary import group_of
from trainer.safety.judge_client import JudgeClient
from trainer.training import checkpoint
from trainer.training.canaries import CanaryWatch
from trainer.training.critic import Critic
from trainer.training.data import Example, encode_rows, load_rows
from trainer.training.distributed import Collective, World
from trainer.training.engine import Engine, init_distributed
from trainer.training.guide import JudgedBeta
from trainer.training.guides import build_guide
from trainer.training.loop import Run, checkpoints_of
from trainer.training.model import build_objective, load_tokenizer, precision
from trainer.training.objective import CachedStates
from trainer.training.order import DataOrder, micro_batch_size, plan_steps
from trainer.training.recorder import Recorder
from trainer.training.reference import ReferenceStates, compute_states
from trainer.training.run_spec import REFERENCE, RunSpec
from trainer.training.sampler import InlineSampler


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
    with closing(build_guide(spec, rows, order, collective, recorder, stopping)) as guide:
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
            guide.asking.sampler = _sampler(spec, engine, tokenizer, world)
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
    return CanaryWatch(
        settings=spec.canaries,
        canaries=load_canaries(spec.canaries.file),
        client=JudgeClient(
            url=spec.judge.url,
            # The operator's, never the job's: whoever chose the rubric would set the gate.
            rubric=spec.judge.rubric,
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
