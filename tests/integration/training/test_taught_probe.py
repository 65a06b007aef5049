"""A probe that the judge teaches, in real runs: the same on every rank, after every kill, from the log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.forked import Forge
from benchmarks.resume import killed_at, metrics, parameters_that_differ, run_spec, trace
from shared.safety import Safety
from trainer.safety.journal import replay
from trainer.training.run_spec import CONTROLLER_LOG, EVENTS_FILE, RUN_FILE, Base, RunSpec

pytestmark = pytest.mark.integration

NO_JUDGE_URL = "http://127.0.0.1:9"

TARGET = {"type": "target", "look_ahead": 6}
STALENESS = {"max_staleness": 3, "deadline_s": 60, "clock": "fixed_lag"}


@pytest.fixture
def make(base: Base, train_file: Path, tmp_path: Path) -> Callable[..., RunSpec]:
    def spec(
        name: str,
        url: str,
        probe: dict[str, Any] | None,
        staleness: dict[str, Any] = STALENESS,
        **training: Any,
    ) -> RunSpec:
        made = run_spec(tmp_path / name, base, train_file, url, **training)
        method = {
            "type": "adaptive",
            "sources": [TARGET] if probe is None else [TARGET, {"type": "probe", **probe}],
            "staleness": staleness,
        }
        made = made.model_copy(update={"safety": Safety.model_validate({"method": method})})
        (made.run_dir / RUN_FILE).write_text(made.model_dump_json())
        return made

    return spec


def replays(spec: RunSpec) -> None:
    with (spec.run_dir / CONTROLLER_LOG).open("rb") as log:
        found = replay(log)
    assert found.difference is None
    assert found.decisions >= spec.training.steps


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "online": ({"scan": False}, {}),
    "scanned, cache": ({}, {"reference": "cache"}),
}
STEPS = 16


@pytest.mark.parametrize("way", WAYS)
def test_killed_at_any_step_it_goes_on_as_if_it_had_not_been(
    way: str, ranks: Forge, make: Callable[..., RunSpec], judge: Any
) -> None:
    judge.start(faulty="miss=0.5,seed=1", more=["--no-controls"])
    probe, training = WAYS[way]
    whole, killed = (make(name, judge.url, probe, steps=STEPS, **training) for name in ("whole", "killed"))
    assert ranks.start(whole.run_dir, 2).outcome().status == "succeeded"
    trusted = [event.probe_trust for event in metrics(whole)]
    assert trusted[-1] is not None
    assert trusted[-1] > 0
    assert (trusted[0] is None) is (not probe.get("scan", True))
    result = killed_at(ranks, killed, [5, 11])
    assert (result.outcome.status, result.kills) == ("succeeded", 2)
    assert trace(killed) == trace(whole)
    assert parameters_that_differ(killed, whole) == 0
    replays(whole)
    replays(killed)
    assert not (whole.run_dir / "reference").exists()


def test_under_zero_3_with_adapters_the_reference_is_read_ahead_of_the_step(
    ranks: Forge, make: Callable[..., RunSpec], judge: Any
) -> None:
    """And two ranks come to the betas that one rank comes to."""
    judge.start()
    probe = {"scan": False, "layers": [2]}
    training = {"adapter": "lora", "zero_stage": 3, "steps": 10, "micro_batch_size": 4}
    specs = [make(f"on-{count}", judge.url, probe, ranks=count, **training) for count in (1, 2)]
    for spec in specs:
        assert ranks.start(spec.run_dir, spec.training.ranks or 1).outcome().status == "succeeded"
        assert metrics(spec)[-1].probe_trust is not None
        replays(spec)
    for one, other in zip(*map(trace, specs), strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_it_costs_no_forward_of_any_model(ranks: Forge, make: Callable[..., RunSpec], judge: Any) -> None:
    """Two a micro-batch, the policy's and the reference's, with it as without."""
    judge.start()
    script = Path(__file__).with_name("counting_forwards.py")
    counted = {}
    for name, probe in {"with": {"scan": False}, "without": None}.items():
        spec = make(name, judge.url, probe, ranks=1, steps=8, micro_batch_size=4)
        assert ranks.start(spec.run_dir, 1, script).outcome().status == "succeeded"
        counted[name] = json.loads((spec.run_dir / "forwards.json").read_text())
    assert counted["with"] == counted["without"]
    batches = 8 * 16 // 4
    assert counted["with"] == {"policy": batches, "reference": batches}


def test_a_scan_ends_with_its_deadline_where_the_judge_is_away(
    ranks: Forge, make: Callable[..., RunSpec]
) -> None:
    away = {"max_staleness": 3, "deadline_s": 1, "overdue": "abort"}
    spec = make("away", NO_JUDGE_URL, {}, ranks=1, steps=12, staleness=away)
    outcome = ranks.start(spec.run_dir, 1).outcome()
    assert outcome.error is not None
    assert outcome.error.code == "judge_unavailable"
    assert "16 of 16 example-steps had no verdict" in outcome.error.message
    assert "the judge has been asked about 96 of 96 rows" in (spec.run_dir / EVENTS_FILE).read_text()
    assert metrics(spec) == [], "nothing trains on what nobody has read"


def test_scanned_first_it_speaks_at_the_first_step_and_asks_the_judge_once(
    ranks: Forge, make: Callable[..., RunSpec], judge: Any
) -> None:
    judge.start()
    spec = make("scanned", judge.url, {"layers": [0, 2], "pooling": "mean"}, ranks=1, steps=12)
    assert ranks.start(spec.run_dir, 1).outcome().status == "succeeded"
    told = (spec.run_dir / EVENTS_FILE).read_text()
    assert told.count("the judge has been asked about 96 of 96 rows") == 1
    assert told.count("the reference has read the prompts of 96 of 96 rows") == 1
    first = metrics(spec)[0]
    assert first.probe_trust is not None
    assert first.probe_auroc is not None
    replays(spec)


def test_a_layer_that_the_base_has_not_is_named(
    ranks: Forge, make: Callable[..., RunSpec], judge: Any
) -> None:
    spec = make("layers", judge.url, {"layers": [7]}, ranks=1)
    outcome = ranks.start(spec.run_dir, 1).outcome()
    assert outcome.error is not None
    assert "probe.layers names 7" in outcome.error.message
