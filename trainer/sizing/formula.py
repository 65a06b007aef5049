"""How many judge workers a job needs. Pure; docs/operations.md derives it.

A step of T seconds asks for n judgements, and R workers that do r a second each bring them.

    throughput   n / (R r) <= u T           or the queue grows for as long as the job runs
    latency      b + n / (R r) <= K T       or the reading of step t - K is not in when step t trains

b is the time of one batch at the judge, u the share of the workers' time that is planned for. Where either
fails, the job still keeps its bound: it waits, and a step takes max(T, n / (R r), (b + n / (R r)) / K)
seconds. With K = 0 a step waits for the whole latency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shared.errors import ConfigError

MOST_WORKERS = 100_000


@dataclass(frozen=True)
class Workload:
    step_s: float
    """T: seconds of a step that waits for nothing."""
    batch_size: int
    """Rows a step, over all ranks."""
    max_staleness: int
    """K."""
    samples_per_step: int
    """Answers of the model that are judged each step, from all sources that generate."""
    reads_rows: bool = True
    """Whether the judge reads the rows themselves: in the first epoch each is asked once."""

    @property
    def items_per_step(self) -> int:
        """n, in the first epoch, which asks the most."""
        return self.samples_per_step + (self.batch_size if self.reads_rows else 0)


@dataclass(frozen=True)
class Judge:
    per_s: float
    """r: judgements a second of one worker under load."""
    batch_s: float
    """b: seconds of one batch at the judge."""


def from_tokens(tokens_per_s: float, tokens_per_item: float, batch_s: float) -> Judge:
    """Where only the judge's tokens are known: prompt without the cached rubric, reasoning and label."""
    return Judge(tokens_per_s / tokens_per_item, batch_s)


@dataclass(frozen=True)
class Sizing:
    workers: int
    gpus: int
    items_per_step: int
    needed_per_s: float
    """Judgements a second that the job asks for."""
    given_per_s: float
    """That these workers bring."""
    latency_s: float
    """From asking to the last verdict of a step."""
    allowed_s: float
    """K T."""
    expected_step_s: float
    expected_staleness: int
    """Steps, while nothing fails: at most K, since the job waits."""
    keeps_up: bool
    """The job never waits."""
    warnings: tuple[str, ...]


def size(
    work: Workload,
    judge: Judge,
    *,
    headroom: float = 0.7,
    gpus_per_worker: int = 0,
    workers: int | None = None,
) -> Sizing:
    """The fewest workers with which the job never waits; or what comes of so many `workers`.

    `headroom` is u in (0, 1]. Raises ConfigError where a figure is out of its range.
    """
    _check(work, judge, headroom, workers)
    given = _fewest(work, judge, headroom) if workers is None else workers
    rate = given * judge.per_s
    busy_s = work.items_per_step / rate
    latency_s = judge.batch_s + busy_s if work.items_per_step else 0.0
    allowed_s = work.max_staleness * work.step_s
    step_s = expected_step_s(work, judge, given)
    return Sizing(
        workers=given,
        gpus=given * gpus_per_worker,
        items_per_step=work.items_per_step,
        needed_per_s=work.items_per_step / work.step_s,
        given_per_s=rate,
        latency_s=latency_s,
        allowed_s=allowed_s,
        expected_step_s=step_s,
        # Where the workers are too few, what waits adds up until the bound holds the job back.
        expected_staleness=min(work.max_staleness, math.ceil(latency_s / step_s))
        if busy_s <= work.step_s
        else work.max_staleness,
        keeps_up=step_s <= work.step_s,
        warnings=tuple(_warnings(work, judge, headroom, given, busy_s, latency_s, step_s)),
    )


def expected_step_s(work: Workload, judge: Judge, workers: int) -> float:
    """Of the steady state."""
    if work.items_per_step == 0:
        return work.step_s
    busy_s = work.items_per_step / (workers * judge.per_s)
    latency_s = judge.batch_s + busy_s
    if work.max_staleness == 0:
        return work.step_s + latency_s
    return max(work.step_s, busy_s, latency_s / work.max_staleness)


def _fewest(work: Workload, judge: Judge, headroom: float) -> int:
    """By throughput; more where that lets the latency fit, and it can be made to fit at all."""
    by_rate = work.items_per_step / (judge.per_s * headroom * work.step_s)
    spare_s = work.max_staleness * work.step_s - judge.batch_s
    by_latency = work.items_per_step / (judge.per_s * spare_s) if spare_s > 0 else 0.0
    # Rounded down by a hair: 0.1 + 0.2 workers too many are one whole worker too many.
    return min(MOST_WORKERS, max(1, math.ceil(max(by_rate, by_latency) - 1e-9)))


def _warnings(
    work: Workload,
    judge: Judge,
    headroom: float,
    workers: int,
    busy_s: float,
    latency_s: float,
    step_s: float,
) -> list[str]:
    if work.items_per_step == 0:
        return ["the job asks the judge for nothing; one worker is counted"]
    said = []
    k, allowed_s = work.max_staleness, work.max_staleness * work.step_s
    slower = f"a step then takes about {step_s:.3g} s instead of {work.step_s:.3g}"
    if k == 0:
        said.append(
            f"K is 0: every step waits for its own reading, {latency_s:.3g} s with {workers} workers;"
            f" {slower}"
        )
    elif judge.batch_s >= allowed_s:
        said.append(
            f"no number of workers keeps K = {k} without waiting: one batch takes the judge"
            f" {judge.batch_s:.3g} s, and {k} steps take {allowed_s:.3g}. Raise K to"
            f" {_least_k(work, judge, headroom)}, or make the judge's batches faster; {slower}"
        )
    elif latency_s > allowed_s:
        said.append(
            f"a step's verdicts need {latency_s:.3g} s, and K = {k} steps take {allowed_s:.3g}; {slower}"
        )
    if busy_s > work.step_s:
        said.append(
            f"{workers} workers bring {work.items_per_step / busy_s:.3g} judgements a second, and the job"
            f" asks for {work.items_per_step / work.step_s:.3g}: the queue grows until the bound makes the"
            f" job wait; {slower}"
        )
    elif busy_s > headroom * work.step_s:
        said.append(
            f"the workers are busy {busy_s / work.step_s:.0%} of the time, more than the planned"
            f" {headroom:.0%}: bursts, retries and control pairs will make the job wait now and then"
        )
    return said


def _least_k(work: Workload, judge: Judge, headroom: float) -> int:
    """With as many workers as the throughput asks for."""
    return math.floor(judge.batch_s / work.step_s + headroom) + 1


def _check(work: Workload, judge: Judge, headroom: float, workers: int | None) -> None:
    positive = {"the step's time": work.step_s, "the judge's rate": judge.per_s, "headroom": headroom}
    whole = {
        "batch size": work.batch_size,
        "K": work.max_staleness,
        "samples per step": work.samples_per_step,
        "a batch's time": judge.batch_s,
    }
    for name, value in positive.items():
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{name} is {value:g}; it must be more than 0")
    for name, value in whole.items():
        if not (value >= 0 and math.isfinite(value)):
            raise ConfigError(f"{name} is {value:g}; it must not be less than 0")
    if headroom > 1:
        raise ConfigError(f"headroom is {headroom:g}; it is a share of the workers' time, at most 1")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; it must be at least 1")
