"""`tether demo` on its real stack, cut to a few steps. Uses the cached world, or builds it."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from shared import lifeline
from shared.jobs import CreateJob, JobStatus
from shared.safety import Safety
from tests.waiting import until
from trainer.demo import recipe
from trainer.demo.build import ensure_world
from trainer.demo.report import Report
from trainer.demo.run import Plan, run_demo
from trainer.jobs.layout import Layout
from trainer.jobs.store import Store

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def world() -> None:
    ensure_world(progress=False)


def processes_naming(folder: Path) -> list[str]:
    """Command lines of living processes that name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue  # it has ended meanwhile
            if str(folder) in line:
                found.append(line)
    return found


@pytest.mark.parametrize("name", list(recipe.METHODS))
def test_every_job_of_the_recipe_is_a_valid_request(name: str) -> None:
    CreateJob(
        model="tether-tiny",
        training_file="file-1",
        safety=Safety(method=recipe.METHODS[name]),
        training=recipe.TRAINING,
    )


def test_the_demo_runs_to_its_end_and_writes_its_report(tmp_path: Path) -> None:
    text = io.StringIO()
    plan = Plan(
        out=tmp_path / "out",
        state_dir=tmp_path / "state",
        seeds=(1,),
        rows=80,
        prompts=20,
        training=recipe.TRAINING.model_copy(update={"steps": 8}),
        methods={name: recipe.METHODS[name] for name in ("sft", "adaptive")},
    )
    returned = run_demo(plan, Console(file=text, width=100))

    written = (plan.out / "report.json").read_text(encoding="utf-8")
    report = Report.model_validate_json(written)
    assert report == returned
    assert report.seeds == [1]
    assert list(report.models) == ["base", "sft", "adaptive"]
    for result in report.models.values():
        assert 0 <= result.asr <= 1
        assert result.counts["asr"].total == 20
        assert result.judge_failed == {}
        assert result.asr_judge is not None
    # The aligned base is the same whatever is tuned: these are real answers, really judged.
    assert report.models["base"].asr <= 0.1
    assert report.models["base"].benign_helpfulness >= 0.8
    runs = report.by_seed[0].runs
    assert runs["sft"].curves.step == runs["adaptive"].curves.step == list(range(1, 9))
    assert runs["sft"].curves.beta == [0.0] * 8
    assert all(0.1 <= beta <= 1 for beta in runs["adaptive"].curves.beta)
    assert all(age is not None and 0 <= age <= 4 for age in runs["adaptive"].curves.staleness)
    assert report.seconds >= sum(report.phases.values()) - 1

    page = (plan.out / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 5
    assert "http:" not in page
    for place in (str(tmp_path), str(Path.home() / ".cache")):
        assert place not in page + written, "the report names a folder of this machine"
    for name in ("sft", "adaptive"):
        assert (plan.out / "models" / f"{name}-seed-1" / "model.safetensors").is_file()
    assert "sft: succeeded" in text.getvalue()
    assert processes_naming(tmp_path) == []


def test_ctrl_c_cancels_the_jobs_and_stops_everything(tmp_path: Path) -> None:
    out, state = tmp_path / "out", tmp_path / "state"
    command = "from trainer.demo.cli import demo; import typer; typer.run(demo)"
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(
            lifeline.command([sys.executable, "-c", command, "--out", str(out), "--state-dir", str(state)]),
            env=lifeline.environment({**os.environ, "COLUMNS": "200"}),
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    try:

        def rank_lives() -> bool:
            assert process.poll() is None, (tmp_path / "said").read_text(encoding="utf-8")
            return any("trainer.training.worker" in line for line in processes_naming(state))

        until(rank_lives, "a rank of the first job runs")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert "stopped" in (tmp_path / "said").read_text(encoding="utf-8")
    assert processes_naming(tmp_path) == []
    assert not (out / "report.json").exists()
    with Store(Layout(state).database) as store:
        statuses = [job.status for job in store.jobs().data]
    assert statuses == [JobStatus.CANCELLED] * 4
