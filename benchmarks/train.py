"""What safety costs a training run: `make bench-train`.

waiting      of whole runs at growing delays of the judge, and of the judge that every step waits for
references   an adaptive step over a plain one, for each way of having a reference, taken in turns
probe        a step with it over one with a fixed KL, in the same turns; forward passes of each
loss         the chunked soft-target loss against the formula over whole logits, vocabulary 128,000
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.report import Row, write
from benchmarks.staleness import K, alternate, judge, spec_of, unjudged_step, whole_run
from shared.safety import Adaptive, FixedKl, Method, ProbeSource, Safety, Sft, Source, Staleness, TargetSource
from shared.training import Full, Lora, Training
from trainer.demo.build import ensure_world
from trainer.training.assemble import assembled
from trainer.training.distributed import World
from trainer.training.engine import shutdown
from trainer.training.loop import Pace, Run, train_step
from trainer.training.losses import token_losses
from trainer.training.recorder import Recorder
from trainer.training.soft_target import SoftTargetLoss, SoftTargets

DELAYS = (0.1, 0.5, 1.0, 2.0, 3.0)
BEYOND = (4.0, 6.0)
"""Steps of delay that the bound no longer hides."""
SYNCHRONOUS = (0.5, 1.0, 3.0)
WAIT_LIMIT = 0.01
STEP_LIMIT = 1.10
CACHE_LIMIT = 1.15
PROBE_LIMIT = 1.05
ROUNDS, BLOCK = 6, 8

LOSS_TOKENS, LOSS_HIDDEN, LOSS_VOCABULARY = 512, 256, 128_000
LOSS_ROUNDS = 5
MEMORY_LIMIT, TIME_LIMIT = 0.3, 0.7


def main() -> int:
    torch.set_num_threads(1)
    base = ensure_world().base
    rows = [*_loss()]
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        rows += _references(directory / "references", base)
        rows += _waiting(directory, base)
    shutdown()
    return write("train", rows)


# --- waiting -----------------------------------------------------------------------------------


def _waiting(directory: Path, base: Path) -> list[Row]:
    rows = []
    step_s = unjudged_step(directory / "warm", base)
    rows.append(Row("step that generates and asks no judge", step_s, "s"))
    for delay in (*DELAYS, *BEYOND):
        with judge(directory / f"judge-{delay}", delay * step_s) as url:
            if delay == 1.0:
                ratio = alternate(directory / "blocks", base, url).ratio
                rows.append(Row("judged step / unjudged step, delay 1 step", ratio, "", STEP_LIMIT))
            waiting = whole_run(directory / f"run-{delay}", base, url)
        name = f"waiting / run, K = {K}, delay {delay:g} steps"
        if delay in DELAYS:
            rows.append(Row(name, waiting, "", WAIT_LIMIT))
        else:
            # A reading may be K steps old: what is over is waited for, and no more.
            allowed = max(0.0, 1 - K / delay)
            rows.append(Row(f"{name} (the rules allow {allowed:.2f})", waiting, ""))
    synchronous = Adaptive(
        sources=(TargetSource(look_ahead=0),), staleness=Staleness(max_staleness=0, deadline_s=600)
    )
    for delay in SYNCHRONOUS:
        with judge(directory / f"sync-judge-{delay}", delay * step_s) as url:
            waiting = whole_run(directory / f"sync-{delay}", base, url, method=synchronous, steps=60)
        rows.append(Row(f"waiting / run, each step waits for its batch, delay {delay:g} steps", waiting, ""))
    return rows


# --- references --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    method: Method
    adapter: Full | Lora
    reference: Literal["auto", "adapters_off", "frozen_copy", "cache"] = "auto"


ONLINE, SCANNED = ProbeSource(scan=False), ProbeSource(scan=True)


def _ways(adapter: Full | Lora, own: Literal["adapters_off", "frozen_copy"]) -> dict[str, Way]:
    return {
        "plain": Way(Sft(), adapter),
        own: Way(_from_file(), adapter, own),
        "cache": Way(_from_file(), adapter, "cache"),
        "fixed KL": Way(FixedKl(beta=0.5), adapter, own),
        "probe online": Way(_from_file(ONLINE), adapter, own),
        "probe scanned": Way(_from_file(SCANNED), adapter, own),
    }


def _references(directory: Path, base: Path) -> list[Row]:
    """One rank. The scores come with the file, so that a step is nothing but its training. The steps are
    of the first epoch: a probe that learns online reads every row of them for the first time."""
    rows = []
    kinds: list[tuple[Full | Lora, Literal["adapters_off", "frozen_copy"]]] = [
        (Full(), "frozen_copy"),
        (Lora(), "adapters_off"),
    ]
    for adapter, own in kinds:
        taken = _in_turns(directory / adapter.type, base, _ways(adapter, own))
        median = {name: statistics.median(steps.seconds) for name, steps in taken.items()}
        rows.append(Row(f"{adapter.type}: plain step", median["plain"], "s"))
        for name in (own, "cache"):
            limit = CACHE_LIMIT if name == "cache" else None
            ratio = median[name] / median["plain"]
            rows.append(Row(f"{adapter.type}: adaptive step / plain step, {name}", ratio, "", limit))
        fixed = taken["fixed KL"]
        for name in ("probe online", "probe scanned"):
            step = f"{adapter.type}: step / fixed-KL step, {name}"
            rows.append(Row(step, median[name] / median["fixed KL"], "", PROBE_LIMIT))
            # Where the probe is fitted anew is in the mean, and hardly in the median.
            mean = statistics.fmean(taken[name].seconds) / statistics.fmean(fixed.seconds)
            rows.append(Row(f"{step}, of means", mean, ""))
            forwards = taken[name].forwards / fixed.forwards
            rows.append(Row(f"{adapter.type}: forward passes / fixed KL's, {name}", forwards, "", 1.0))
    return rows


@dataclass
class Steps:
    seconds: list[float] = field(default_factory=list)
    forwards: int = 0
    """Of policy and reference."""


def _in_turns(directory: Path, base: Path, ways: Mapping[str, Way]) -> dict[str, Steps]:
    taken = {name: Steps() for name in ways}
    with ExitStack() as stack:
        runs = {
            name: stack.enter_context(_assembled(directory / name.replace(" ", "-"), base, way))
            for name, way in ways.items()
        }
        for name, run in runs.items():
            _count_forwards(run, taken[name])
        for turn in range(ROUNDS):
            for name, run in runs.items():
                block = [_step(run) for _ in range(BLOCK)]
                taken[name].seconds += block if turn else []
    return taken


def _count_forwards(run: Run, steps: Steps) -> None:
    def count(*_: object) -> None:
        steps.forwards += 1

    objective = run.engine.objective
    for model in (objective.policy, objective.reference):
        if model is not None:
            embeddings: Any = model
            embeddings.get_input_embeddings().register_forward_hook(count)


def _from_file(*more: Source) -> Adaptive:
    return Adaptive(sources=(TargetSource(), *more))


def _assembled(directory: Path, base: Path, way: Way) -> AbstractContextManager[Run]:
    spec = spec_of(directory, base, "http://127.0.0.1:9", steps=10_000)
    lines = spec.train_file.read_text(encoding="utf-8").splitlines()
    scored = [json.dumps({**json.loads(line), "harm_score": i % 2}) for i, line in enumerate(lines)]
    spec.train_file.write_text("\n".join(scored) + "\n", encoding="utf-8")
    training = Training.model_validate(
        {**spec.training.model_dump(), "adapter": way.adapter, "reference": way.reference}
    )
    spec = spec.model_copy(
        update={
            "safety": Safety(method=way.method),
            "training": training,
            "judge": None,
            "trust_file_scores": True,
        }
    )
    rank = World(0, 1, 0, torch.device("cpu"))
    return assembled(spec, rank, Recorder(directory, writes=True), lambda: False)


def _step(run: Run) -> float:
    began = time.monotonic()
    rows = run.order.rows(run.step)
    train_step(run, rows, run.guide.guide(run.step, rows), began, Pace())
    run.step += 1
    return time.monotonic() - began


# --- loss --------------------------------------------------------------------------------------


def _loss() -> list[Row]:
    rows = []
    for trainable in (False, True):
        problem = _Problem(trainable)
        plain, chunked = [], []
        for _ in range(LOSS_ROUNDS):
            plain.append(problem.measure(problem.plain))
            chunked.append(problem.measure(problem.chunked))
        head = "trainable" if trainable else "frozen"
        time_ratio, memory_ratio = (
            statistics.median(taken[which] for taken in chunked)
            / statistics.median(taken[which] for taken in plain)
            for which in (0, 1)
        )
        rows.append(Row(f"loss, {head} head: chunked / plain, time", time_ratio, "", TIME_LIMIT))
        rows.append(Row(f"loss, {head} head: chunked / plain, peak memory", memory_ratio, "", MEMORY_LIMIT))
    return rows


class _Problem:
    def __init__(self, trainable_head: bool) -> None:
        torch.manual_seed(0)
        self.hidden_NH = torch.randn(LOSS_TOKENS, LOSS_HIDDEN, requires_grad=True)
        self.ref_hidden_NH = self.hidden_NH.detach() + 0.3 * torch.randn(LOSS_TOKENS, LOSS_HIDDEN)
        head_VH = torch.randn(LOSS_VOCABULARY, LOSS_HIDDEN) * LOSS_HIDDEN**-0.5
        self.head_VH = nn.Parameter(head_VH, requires_grad=trainable_head)
        self.ref_head_VH = nn.Parameter(head_VH.clone(), requires_grad=False)
        self.label_N = torch.randint(0, LOSS_VOCABULARY, (LOSS_TOKENS,))
        self.alpha_N = torch.rand(LOSS_TOKENS)
        self.module = SoftTargetLoss(self.head_VH, self.ref_head_VH)

    def plain(self) -> Tensor:
        nll_N, kl_N = token_losses(
            self.hidden_NH @ self.head_VH.T, self.label_N, self.ref_hidden_NH @ self.ref_head_VH.T
        )
        assert kl_N is not None
        return (self.alpha_N * nll_N + (1 - self.alpha_N) * kl_N).sum()

    def chunked(self) -> Tensor:
        targets = SoftTargets(self.label_N, self.alpha_N, 1 - self.alpha_N)
        loss: Tensor = self.module(self.hidden_NH, targets, self.ref_hidden_NH).loss
        return loss

    def measure(self, loss: Callable[[], Tensor]) -> tuple[float, float]:
        """Seconds, and bytes at the peak beyond what was there and the head's gradient."""
        self.hidden_NH.grad = self.head_VH.grad = None
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        began = time.monotonic()
        torch.autograd.backward(loss())
        seconds = time.monotonic() - began
        peak = _resident("VmHWM") - before
        return seconds, peak - (self.head_VH.nbytes if self.head_VH.requires_grad else 0)


def _resident(field: str) -> int:
    """Bytes, from Linux's own account."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    sys.exit(main())
