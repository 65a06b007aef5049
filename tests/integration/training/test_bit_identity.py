"""Bit for bit: the synchronous judge, whatever the judge's timing, whatever kills the run.

Real ranks and DeepSpeed, real judge services; the ranks are forked from one process that has imported
everything, so that a start takes a second.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.forked import Forge
from benchmarks.resume import METHOD, killed_at, metrics, parameters_that_differ, reaches, run_spec, trace
from shared.embedded_redis import RunningRedis
from shared.safety import Safety
from trainer.safety.journal import replay
from trainer.training.run_spec import CONTROLLER_LOG, RUN_FILE, Base, RunSpec

pytestmark = pytest.mark.integration


@pytest.fixture
def make(base: Base, train_file: Path, tmp_path: Path) -> Callable[..., RunSpec]:
    def spec(name: str, url: str, method: dict[str, Any] = METHOD, **training: Any) -> RunSpec:
        made = run_spec(tmp_path / name, base, train_file, url, **training)
        made = made.model_copy(update={"safety": Safety.model_validate({"method": method})})
        (made.run_dir / RUN_FILE).write_text(made.model_dump_json())
        return made

    return spec


def replays(spec: RunSpec) -> None:
    with (spec.run_dir / CONTROLLER_LOG).open("rb") as log:
        found = replay(log)
    assert found.difference is None
    assert found.decisions >= spec.training.steps


def received(spec: RunSpec) -> list[list[Any]]:
    """The verdicts of a run's log, in the order in which they came."""
    lines = (spec.run_dir / CONTROLLER_LOG).read_text().splitlines()
    calls = [call for call in map(json.loads, lines) if call["op"] == "receive"]
    return [told for call in calls for told in call["arrivals"]]


def test_k_0_is_a_plain_synchronous_judge(ranks: Forge, make: Callable[..., RunSpec], judge: Any) -> None:
    judge.start()
    method = {
        **METHOD,
        "sources": [{"type": "target", "look_ahead": 0}, *METHOD["sources"][1:]],
        "staleness": {"max_staleness": 0, "deadline_s": 60},
    }
    real = make("real", judge.url, method, ranks=1, steps=20, checkpoint_every=50)
    assert ranks.start(real.run_dir, 1).outcome().status == "succeeded"
    plain = make("plain", judge.url, method, ranks=1, steps=20, checkpoint_every=50)
    script = Path(__file__).with_name("plain_synchronous.py")
    assert ranks.start(plain.run_dir, 1, script).outcome().status == "succeeded"
    expected = [tuple(step) for step in json.loads((plain.run_dir / "trace.json").read_text())]
    assert trace(real) == expected
    assert len(expected) == 20
    assert len({number for step in expected for number in step}) > 5
    assert parameters_that_differ(real, plain) == 0
    assert {event.staleness for event in metrics(real)} == {0}
    replays(real)


def test_fixed_lag_is_the_same_whatever_the_judges_timing(
    ranks: Forge,
    make: Callable[..., RunSpec],
    judge_service: Callable[..., Any],
    redis_server: RunningRedis,
    tmp_path: Path,
) -> None:
    """On one rank and on two: a judge at once, one that is late at random, and two workers of which one
    overtakes the other."""
    judges = {
        "prompt": judge_service().start(),
        "random": judge_service().start(faulty="delay_s=0.02,jitter_s=0.3,seed=1"),
        "reordered": judge_service().start(faulty="delay_s=0.25,seed=2"),
    }
    judges["reordered"].worker()
    for count in (1, 2):
        specs = {
            name: make(f"{name}-{count}", judge.url, ranks=count, steps=20, checkpoint_every=50)
            for name, judge in judges.items()
        }
        for spec in specs.values():
            assert ranks.start(spec.run_dir, count).outcome().status == "succeeded"
            replays(spec)
            assert {event.staleness for event in metrics(spec)[3:]} == {3}
            told = received(spec)
            assert any(source == "reference" and isinstance(score, float) for _, source, _, score, *_ in told)
        expected = trace(specs["prompt"])
        assert len({number for step in expected for number in step}) > 5
        for name in ("random", "reordered"):
            assert trace(specs[name]) == expected
            assert parameters_that_differ(specs[name], specs["prompt"]) == 0
            orders = [[told[:3] for told in received(specs[kind])] for kind in (name, "prompt")]
            assert orders[0] != orders[1], "the judge's timing made no difference to begin with"


def test_killed_and_stopped_at_random_steps_it_repeats_the_whole_run(
    ranks: Forge, make: Callable[..., RunSpec], judge: Any
) -> None:
    """benchmarks/resume.py kills 20 times."""
    judge.start()
    whole, killed = make("whole", judge.url), make("killed", judge.url)
    assert ranks.start(whole.run_dir, 2).outcome().status == "succeeded"
    stopped = ranks.start(killed.run_dir, 2)
    assert reaches(stopped, 2)
    assert stopped.stop().status == "stopped"
    at = sorted(random.Random(3).sample(range(8, 38), 4))
    result = killed_at(ranks, killed, at)
    assert (result.outcome.status, result.kills) == ("succeeded", 4)
    assert result.repeated > 0
    assert trace(killed) == trace(whole)
    assert parameters_that_differ(killed, whole) == 0
    replays(killed)
