"""The training loop: one screen."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shared.errors import TrainingError
from shared.safety import Adaptive
from trainer.safety.decision import Action
from trainer.training import checkpoint
from trainer.training.canaries import CanaryWatch
from trainer.training.checkpoint import RunState
from trainer.training.constant import ConstantBeta
from trainer.training.data import Example, collate
from trainer.training.distributed import Collective
from trainer.training.engine import Engine
from trainer.training.gate import Earlier, LastStep, NoStep, last_within, verdict
from trainer.training.guidance import Guidance
from trainer.training.guide import JudgedBeta
from trainer.training.losses import ExampleLosses
from trainer.training.model import save_model
from trainer.training.order import DataOrder, micro_batch_size, micro_shares
from trainer.training.recorder import Recorder
from trainer.training.reference import ReferenceStates, with_states
from trainer.training.run_spec import ARTIFACT, CHECKPOINTS, Outcome, OutcomeError, OutcomeStatus, RunSpec
from trainer.training.schedule import learning_rate


@dataclass
class Run:
    """One rank's view of a run."""

    spec: RunSpec
    steps: int
    examples: Sequence[Example]
    valid: Sequence[Example]
    """Of the validation file; empty where there is none."""
    order: DataOrder
    engine: Engine
    tokenizer: Any
    guide: ConstantBeta | JudgedBeta
    collective: Collective
    recorder: Recorder
    states: ReferenceStates | None
    """Of the reference, where they are kept on disk."""
    canaries: CanaryWatch | None
    step: int
    """Steps done."""
    trained_tokens: int
    train_loss: float | None = None
    """Of the latest step."""


def train(run: Run) -> Outcome:
    """From the run's step to its last. Every rank returns the same outcome."""
    pace = Pace()
    while run.step < run.steps:
        began = time.monotonic()
        rows = run.order.rows(run.step)
        guidance = run.guide.guide(run.step, rows)
        if guidance.stop:
            _save(run, parked=False)
            return _outcome(run, OutcomeStatus.STOPPED)
        if guidance.action is Action.PARK:
            _save(run, parked=True)
            return _outcome(run, OutcomeStatus.PARKED, _unavailable(run, guidance))
        if guidance.action is Action.ABORT:
            return _outcome(run, OutcomeStatus.FAILED, _unavailable(run, guidance), _export(run))
        if _unread_past_limit(run):
            return _outcome(run, OutcomeStatus.FAILED, _too_much_unread(run), _export(run))
        train_step(run, rows, guidance, began, pace)
        run.step += 1
        if run.canaries is not None:
            run.canaries.trained(run.step)
        if run.step % run.spec.training.checkpoint_every == 0 and run.step < run.steps:
            _ask_canaries(run)
            _save(run, parked=False)
    if _unread_at_the_end(run):
        return _outcome(run, OutcomeStatus.FAILED, _too_much_unread(run), _export(run))
    _ask_canaries(run)
    _save(run, parked=False)
    return _published(run)


def _published(run: Run) -> Outcome:
    """The end of a run that trained to its last step: what is published, if anything may be."""
    if run.canaries is None:
        return _outcome(run, OutcomeStatus.SUCCEEDED, artifact=_export(run))
    if not run.canaries.settle():
        return _outcome(run, OutcomeStatus.STOPPED)
    last = last_within(run.canaries.log, checkpoints_of(run.spec), run.collective)
    match verdict(run.canaries.log, run.step, last):
        case LastStep():
            return _outcome(run, OutcomeStatus.SUCCEEDED, artifact=_export(run))
        case Earlier(step=step, message=message):
            run.recorder.message("warn", message, {"published_step": step})
            if run.collective.world.rank == 0:
                shutil.rmtree(run.spec.run_dir / ARTIFACT, ignore_errors=True)
                folder = checkpoint.of_step(checkpoints_of(run.spec), step)
                if folder is None:
                    raise TrainingError(f"the checkpoint of step {step}, which is to be published, is gone")
                shutil.copytree(folder / checkpoint.MODEL, run.spec.run_dir / ARTIFACT)
            run.collective.barrier()
            done = _outcome(run, OutcomeStatus.SUCCEEDED, artifact=ARTIFACT)
            return done.model_copy(update={"published_step": step})
        case NoStep(error=error):
            return _outcome(run, OutcomeStatus.FAILED, error, _export(run))


def _worth_keeping(run: Run) -> Collection[int]:
    if run.canaries is None:
        return ()
    return run.canaries.log.worth_keeping(checkpoint.steps(checkpoints_of(run.spec)))


def _ask_canaries(run: Run) -> None:
    if run.canaries is not None:
        run.canaries.ask(run.step)


def train_step(run: Run, rows: tuple[int, ...], guidance: Guidance, began: float, pace: Pace) -> None:
    """Trains `rows` by the guidance's betas, and records the step."""
    world = run.collective.world
    micro = micro_batch_size(run.spec.training, world.ranks)
    # Dropout, where there is any, is a function of (seed, step, rank): nothing to save, and a
    # resumed run repeats it.
    torch.manual_seed(run.spec.seed * 1_000_003 + run.step * world.ranks + world.rank)
    micro_batches = []
    ahead = run.guide.ahead
    for turn, chosen in enumerate(micro_shares(len(rows), world.rank, world.ranks, micro)):
        if ahead is not None:
            batch = ahead[turn]
        else:
            batch = collate([run.examples[rows[i]] for i in chosen], run.tokenizer.pad_token_id)
        if run.states is not None:
            batch = with_states(batch, run.states, [rows[i] for i in chosen])
        if guidance.kept is not None:
            kept = torch.tensor([float(guidance.kept[i]) for i in chosen])
            batch = replace(batch, weight_B=kept.to(batch.ids_BT.device))
        micro_batches.append((batch, torch.tensor([guidance.betas[i] for i in chosen])))
    rate = learning_rate(run.spec.training, run.step, run.steps)
    loss, losses = run.engine.train_step(micro_batches, rate)
    tokens = sum(len(batch.label_N) for batch, _ in micro_batches)
    mean = run.collective.mean([loss, _mean(losses, "nll_B"), _mean(losses, "kl_B"), float(tokens)])
    run.trained_tokens += round(mean[3] * world.ranks)
    run.train_loss = mean[0] * world.ranks
    step_s = time.monotonic() - began
    has_kl = losses[0].kl_B is not None
    canary = None if run.canaries is None else run.canaries.log.newest
    run.recorder.metrics(
        step=run.step + 1,
        steps=run.steps,
        loss=run.train_loss,
        nll=mean[1],
        kl=mean[2] if has_kl else None,
        beta=sum(guidance.betas) / len(guidance.betas),
        beta_max=max(guidance.betas),
        risk=guidance.risk,
        staleness=guidance.staleness,
        staleness_s=guidance.age.staleness_s,
        queue_s=guidance.age.queue_s,
        judge_s=guidance.age.judge_s,
        fold_s=guidance.age.fold_s,
        overdue=guidance.overdue,
        bases=guidance.bases,
        probe_trust=guidance.probe.trust,
        probe_auroc=guidance.probe.auroc,
        samples=guidance.samples,
        canary_asr=None if canary is None else canary.asr,
        canary_over_refusal=None if canary is None else canary.over_refusal,
        wait_s=guidance.wait_s,
        generate_s=guidance.generate_s,
        step_s=step_s,
        learning_rate=rate,
        tokens=run.trained_tokens,
        eta_s=pace.eta(step_s, run.steps - run.step - 1),
    )


def _mean(losses: Sequence[ExampleLosses], name: str) -> float:
    values = [getattr(part, name) for part in losses]
    if values[0] is None:
        return 0.0
    return float(torch.cat(values).mean())


class Pace:
    """Seconds a step, smoothed, for the ETA."""

    def __init__(self) -> None:
        self._step_s: float | None = None

    def eta(self, step_s: float, left: int) -> float:
        self._step_s = step_s if self._step_s is None else 0.9 * self._step_s + 0.1 * step_s
        return self._step_s * left


# --- what may go wrong with the judge ----------------------------------------------------------


def _cause(run: Run) -> str:
    return run.guide.cause() if isinstance(run.guide, JudgedBeta) else ""


def _unavailable(run: Run, guidance: Guidance) -> OutcomeError:
    return OutcomeError(
        code="judge_unavailable",
        message=f"step {run.step}: readings are {guidance.staleness} steps old and the judge gives no newer"
        f" ones. {_cause(run)}",
    )


def _unread_past_limit(run: Run) -> bool:
    planned = run.steps * run.spec.training.batch_size
    return isinstance(run.guide, JudgedBeta) and run.guide.controller.unread_past_limit(planned)


def _unread_at_the_end(run: Run) -> bool:
    method = run.spec.safety.method
    return (
        isinstance(run.guide, JudgedBeta)
        and isinstance(method, Adaptive)
        and run.guide.controller.unread_fraction > method.staleness.max_unread_fraction
    )


def _too_much_unread(run: Run) -> OutcomeError:
    if not isinstance(run.guide, JudgedBeta):
        raise TypeError(f"{type(run.guide).__name__} reads nothing")
    unread, trained = run.guide.controller.unread, run.guide.controller.counts.trained
    return OutcomeError(
        code="judge_unavailable",
        message=f"{unread} of {trained} example-steps had no verdict behind them, more than the job allows;"
        f" the model is kept as an artifact but is not published. {_cause(run)}",
    )


# --- what is kept ------------------------------------------------------------------------------


def _card(run: Run) -> dict[str, Any]:
    return {
        "job": run.spec.job_id,
        "base": run.spec.base.id,
        "step": run.step,
        "steps": run.steps,
        "seed": run.spec.seed,
        "safety": run.spec.safety.model_dump(mode="json"),
        "training": run.spec.training.model_dump(mode="json"),
    }


def _save(run: Run, *, parked: bool) -> None:
    rank_state = {
        "guide": run.guide.state(run.step),
        "canaries": None if run.canaries is None else run.canaries.state(),
    }
    # Before the checkpoint appears: a run that is resumed from it finds in the log how it came to be.
    run.recorder.flush()
    path = checkpoint.save(
        run.spec.run_dir / CHECKPOINTS,
        state=RunState(run.step, run.trained_tokens, run.collective.world.ranks, parked),
        rank_state=rank_state,
        engine=run.engine,
        tokenizer=run.tokenizer,
        collective=run.collective,
        keep=run.spec.training.keep_checkpoints,
        card=_card(run),
        wanted=_worth_keeping(run),
    )
    metrics = {"step": float(run.step)}
    if run.train_loss is not None:
        metrics["train_loss"] = run.train_loss
    if run.valid:
        metrics["valid_loss"] = _valid_loss(run)
    run.recorder.checkpoint(run.step, path / checkpoint.MODEL, metrics)


def _valid_loss(run: Run) -> float:
    """Mean over the validation examples of their NLL, nats a token. Every rank calls it."""
    world = run.collective.world
    micro = micro_batch_size(run.spec.training, world.ranks)
    # Repeated from the start to a whole number of batches a rank: ranks must take equally many
    # forwards. What is repeated counts for nothing.
    rounds = -(-len(run.valid) // (micro * world.ranks))
    batches, weights = [], []
    for at in range(world.rank * micro, rounds * micro * world.ranks, micro * world.ranks):
        chosen = range(at, at + micro)
        batches.append(collate([run.valid[i % len(run.valid)] for i in chosen], run.tokenizer.pad_token_id))
        weights.append([float(i < len(run.valid)) for i in chosen])
    mean = run.collective.mean([run.engine.weighted_nll(batches, weights)])
    return mean[0] * world.ranks / len(run.valid)


def _export(run: Run) -> str:
    """The model as it stands. Every rank calls it."""
    weights = run.engine.policy_weights()
    if weights is not None:
        save_model(
            run.engine.objective.policy, run.tokenizer, weights, run.spec.run_dir / ARTIFACT, _card(run)
        )
    run.collective.barrier()
    return ARTIFACT


def _outcome(
    run: Run, status: OutcomeStatus, error: OutcomeError | None = None, artifact: str | None = None
) -> Outcome:
    return Outcome(
        status=status, error=error, step=run.step, trained_tokens=run.trained_tokens, artifact=artifact
    )


def checkpoints_of(spec: RunSpec) -> Path:
    return spec.run_dir / CHECKPOINTS
