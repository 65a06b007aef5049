"""A run that something ends goes on from its last whole checkpoint, and ends where the whole run ends."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from benchmarks.forked import Forge
from trainer.training.checkpoint import latest
from trainer.training.run_spec import EVENTS_FILE, OUTCOME_FILE, RUN_FILE, read_spec

pytestmark = pytest.mark.integration

LONG = {"steps": 40, "checkpoint_every": 5, "micro_batch_size": 1, "zero_stage": 2, "keep_checkpoints": 1}


def same_model(one: Path, other: Path) -> bool:
    weights, others = (load_file(path / "artifact" / "model.safetensors") for path in (one, other))
    return all(bool((weights[name] == others[name]).all()) for name in weights)


def test_a_dead_rank_takes_the_others_along_and_sigterm_leaves_a_checkpoint(
    start_run: Callable[..., Any],
) -> None:
    """Two ranks; SFT, with neither judge nor reference. torchrun kills; how it passes SIGTERM on is tried
    with the jobs that are paused."""
    run = start_run("parts", "sft", **LONG)
    run.wait_for_step(7)
    ranks = subprocess.run(
        ["pgrep", "-f", f"trainer.training.worker {run.run_dir}"], capture_output=True, text=True, check=True
    )
    subprocess.run(["kill", "-9", ranks.stdout.split()[-1]], check=True)
    until = time.monotonic() + 60
    while run.process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert run.process.poll() not in (None, 0)
    assert not (run.run_dir / OUTCOME_FILE).exists()
    left = subprocess.run(["pgrep", "-f", str(run.run_dir)], capture_output=True, text=True, check=False)
    assert left.stdout == ""
    reached = run.metrics()[-1].step

    again = start_run("parts", "sft", forked=True, **LONG)
    again.wait_for_step(reached + 2)
    again.process.stop()
    stopped = again.wait()
    assert stopped.status == "stopped"
    assert stopped.step < LONG["steps"]
    checkpoint = latest(run.run_dir / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.name.startswith(f"step-{stopped.step:06d}")

    rest = start_run("parts", "sft", forked=True, **LONG)
    assert rest.wait().status == "succeeded"
    assert f"going on from the checkpoint at step {stopped.step}" in rest.messages()
    assert [event.step for event in rest.metrics()] == list(range(1, LONG["steps"] + 1))
    assert rest.metrics()[-1].kl is None
    whole = start_run("whole", "sft", forked=True, **LONG)
    assert whole.wait().status == "succeeded"
    assert same_model(rest.run_dir, whole.run_dir)


def test_killed_in_the_middle_of_a_save_the_checkpoint_before_it_is_used(
    start_run: Callable[..., Any], ranks: Forge, tmp_path: Path
) -> None:
    """With the reference's states on disk, which are not computed again."""
    whole = start_run(
        "whole",
        {"type": "fixed_kl", "beta": 0.5},
        forked=True,
        **{"ranks": 1, "steps": 12, "checkpoint_every": 4, "keep_checkpoints": 1, "reference": "cache"},
    )
    assert whole.wait().status == "succeeded"
    spec = read_spec(whole.run_dir / RUN_FILE).model_copy(update={"run_dir": tmp_path / "killed"})
    spec.run_dir.mkdir()
    (spec.run_dir / RUN_FILE).write_text(spec.model_dump_json())
    checkpoints = spec.run_dir / "checkpoints"
    script = Path(__file__).with_name("killed_while_saving.py")
    for place, there in (
        ("renamed", {"step-000004"}),
        ("engine written", {"step-000004", ".partial-step-000008"}),
        ("model written", {"step-000004", ".partial-step-000008"}),
        ("renamed", {"step-000004", "step-000008"}),
    ):
        (spec.run_dir / "kill-at").write_text(place)
        died = ranks.start(spec.run_dir, 1, script)
        while not died.poll():
            time.sleep(0.05)
        assert not (spec.run_dir / OUTCOME_FILE).exists()
        assert {path.name for path in checkpoints.iterdir()} == there
        assert latest(checkpoints) == checkpoints / max(there)
    assert ranks.start(spec.run_dir, 1).outcome().status == "succeeded"
    assert [path.name for path in checkpoints.iterdir()] == ["step-000012"]
    assert not (spec.run_dir / "reference").exists()
    assert (spec.run_dir / EVENTS_FILE).read_text().count("the reference has read 96 of 96 rows") == 1
    assert same_model(spec.run_dir, whole.run_dir)
