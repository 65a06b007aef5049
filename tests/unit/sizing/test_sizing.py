"""How many judge workers a job needs."""

from __future__ import annotations

import json
import re

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from typer.testing import CliRunner

from judge_service.worker.metrics import WorkerMetrics
from shared.errors import ConfigError
from trainer.sizing.cli import size as size_command
from trainer.sizing.formula import Judge, Workload, expected_step_s, from_tokens, size
from trainer.sizing.measured import speed_of


def work(**changes: object) -> Workload:
    values = {"step_s": 2.0, "batch_size": 16, "max_staleness": 4, "samples_per_step": 4, **changes}
    return Workload(**values)  # type: ignore[arg-type]


def test_the_throughput_decides_where_the_judge_is_quick() -> None:
    # 20 judgements in 2 s are 10 a second; 70 % of 5 a second are 3.5 a worker.
    found = size(work(), Judge(per_s=5, batch_s=0.5))
    assert (found.items_per_step, found.needed_per_s, found.workers) == (20, 10, 3)
    assert found.given_per_s == 15
    assert found.latency_s == pytest.approx(0.5 + 20 / 15)
    assert (found.expected_step_s, found.expected_staleness) == (2.0, 1)
    assert found.keeps_up
    assert found.warnings == ()


def test_the_latency_decides_where_a_batch_takes_long() -> None:
    # 8 s are K steps; 7.5 s of them one batch, so the 20 must be through in 0.5 s: 40 a second.
    found = size(work(), Judge(per_s=5, batch_s=7.5))
    assert found.workers == 8
    assert found.latency_s == pytest.approx(8.0)
    assert found.expected_staleness == 4
    assert found.keeps_up


def test_where_no_number_of_workers_keeps_the_bound_it_says_so() -> None:
    found = size(work(), Judge(per_s=5, batch_s=9))
    assert not found.keeps_up
    assert found.workers == 3  # by throughput: more would not help
    assert found.expected_step_s == pytest.approx((9 + 20 / 15) / 4)
    assert found.expected_staleness == 4
    [said] = found.warnings
    assert "no number of workers keeps K = 4" in said
    enough = int(re.search(r"Raise K to (\d+)", said)[1])  # type: ignore[index]
    assert size(work(max_staleness=enough), Judge(5, 9), workers=found.workers).keeps_up
    assert not size(work(max_staleness=enough - 1), Judge(5, 9), workers=found.workers).keeps_up


def test_too_few_workers_stretch_the_step_to_what_they_bring() -> None:
    found = size(work(), Judge(per_s=5, batch_s=0.5), workers=1)
    assert not found.keeps_up
    assert (found.expected_step_s, found.expected_staleness) == (4.0, 4)
    assert any("the queue grows" in said for said in found.warnings)
    tight = size(work(), Judge(per_s=5, batch_s=0.5), workers=2)
    assert tight.keeps_up
    assert [said for said in tight.warnings if "busy 100%" in said]


def test_a_bound_of_zero_waits_for_every_reading() -> None:
    found = size(work(max_staleness=0), Judge(per_s=100, batch_s=0.5))
    assert found.expected_step_s == pytest.approx(2 + 0.5 + 0.2)
    assert found.expected_staleness == 0
    assert "K is 0" in found.warnings[0]


def test_sources_and_tokens_are_counted() -> None:
    assert work(reads_rows=False).items_per_step == 4
    nothing = size(work(reads_rows=False, samples_per_step=0), Judge(5, 0.5))
    assert (nothing.workers, nothing.keeps_up, nothing.expected_staleness) == (1, True, 0)
    assert from_tokens(3000, 600, 1.0) == Judge(5.0, 1.0)
    assert size(work(), Judge(5, 0.5), gpus_per_worker=2).gpus == 6


@given(
    step_s=st.floats(0.05, 60),
    batch_size=st.integers(1, 512),
    k=st.integers(0, 32),
    samples=st.integers(0, 64),
    per_s=st.floats(0.1, 500),
    batch_s=st.floats(0, 30),
)
def test_the_fewest_is_enough_and_one_less_is_not(
    step_s: float, batch_size: int, k: int, samples: int, per_s: float, batch_s: float
) -> None:
    job, judge = Workload(step_s, batch_size, k, samples), Judge(per_s, batch_s)
    found = size(job, judge)
    assert found.expected_staleness <= k
    if k > 0 and batch_s < 0.99 * k * step_s and found.workers < 100_000:
        assert found.expected_step_s == pytest.approx(step_s)
        if found.workers > 1:
            fewer = size(job, judge, workers=found.workers - 1)
            assert fewer.warnings or fewer.expected_step_s > step_s * (1 - 1e-6)
    elif not found.keeps_up:
        assert found.warnings
    steps = [expected_step_s(job, judge, workers) for workers in (1, 2, 3, 10)]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize(
    ("job", "judge", "more", "said"),
    [
        (work(step_s=0.0), Judge(5, 1), {}, "the step's time is 0"),
        (work(), Judge(float("nan"), 1), {}, "the judge's rate is nan"),
        (work(), Judge(5, -1), {}, "a batch's time is -1"),
        (work(max_staleness=-1), Judge(5, 1), {}, "K is -1"),
        (work(), Judge(5, 1), {"headroom": 1.5}, "headroom is 1.5"),
        (work(), Judge(5, 1), {"workers": 0}, "workers is 0"),
    ],
)
def test_figures_out_of_range_are_named(
    job: Workload, judge: Judge, more: dict[str, float], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        size(job, judge, **more)  # type: ignore[arg-type]


def exposition(batches: int, items: int, seconds: float, at_once: int) -> str:
    """As a worker's registry has it."""
    metrics = WorkerMetrics()
    metrics.at_once.set(at_once)
    for _ in range(batches):
        metrics._batch_seconds.observe(seconds)
        metrics._verdicts.labels("scored").inc(items - 1)
        metrics._verdicts.labels("parse_error").inc()
    return generate_latest(metrics.registry).decode()


def test_the_speed_is_read_from_what_workers_counted() -> None:
    # 8 items a batch of 0.5 s, two at once: 32 a second. The other: 16 a second.
    found = speed_of([exposition(30, 8, 0.5, 2), exposition(10, 8, 0.5, 1)])
    assert found == Judge(per_s=24.0, batch_s=0.5)
    with pytest.raises(ConfigError, match="19 batches; 20 are the least"):
        speed_of([exposition(19, 8, 0.5, 1)])
    with pytest.raises(ConfigError, match=r"lack judge_batch_seconds_count, .* not of the API"):
        speed_of(["# TYPE judge_redis_up gauge\njudge_redis_up 1\n"])


def test_the_command_prints_a_table_or_json_and_warns_in_words() -> None:
    app = typer.Typer()
    app.command()(size_command)

    def run(*args: str) -> str:
        done = CliRunner().invoke(app, args, catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    speed = ("--step-s", "2", "--rate", "5", "--batch-s", "0.5", "--gpus-per-worker", "1")
    found = json.loads(run(*speed, "--json"))
    assert (found["workers"], found["gpus"], found["keeps_up"], found["warnings"]) == (3, 3, True, [])
    text = run(*speed, "--workers", "1")
    assert "WAITS for the judge" in text
    assert "warning: 1 workers bring 5 judgements a second" in text
    with pytest.raises(ConfigError, match="how fast is the judge"):
        run("--step-s", "2", "--rate", "5")
