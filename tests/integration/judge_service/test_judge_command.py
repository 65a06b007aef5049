"""`tether judge score` and `calibrate` as people use them, on the embedded world's small judge."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from judge_service.cli import app
from trainer.demo.build import ensure_world
from trainer.demo.graded import graded_pairs
from trainer.demo.world import RUBRIC

# The first use of the world trains its models.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROWS = 120
CPU = ("--device", "cpu", "--threads", "1")


@pytest.fixture(scope="module")
def judge() -> str:
    return str(ensure_world(progress=False).judge)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs with the level that the world's own rules give them."""
    path = tmp_path_factory.mktemp("rows") / "labelled.jsonl"
    pairs = {(pair.prompt, pair.response): pair.level for pair in graded_pairs(2 * ROWS, seed=4242)}
    rows = [
        {"prompt": prompt, "response": response, "level": level}
        for (prompt, response), level in list(pairs.items())[:ROWS]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def scored_here(judge: str, labelled: Path) -> Path:
    """Scored by the model in this process."""
    out = labelled.with_name("scored.jsonl")
    done = CliRunner().invoke(
        app, ["score", str(labelled), "--out", str(out), "--rubric", RUBRIC, "--model", judge, *CPU]
    )
    assert done.exit_code == 0, done.output
    return out


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def score_process(source: Path, out: Path, url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "judge_service.cli", "score", str(source), "--out", str(out),
         "--rubric", RUBRIC, "--url", url],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip


def part_lines(out: Path) -> int:
    part = out.with_name(out.name + ".part")
    return len(part.read_bytes().splitlines()) if part.exists() else 0


def test_a_file_through_a_service_interrupted_and_taken_up(
    processes: Any, judge: str, labelled: Path, scored_here: Path, tmp_path: Path
) -> None:
    client = processes.api()
    processes.start(
        "worker", "--model", judge, *CPU, "--batch-size", "8", "--faulty", "delay_s=0.6,seed=1",
        "--concurrency", "1",
    )  # fmt: skip
    out = tmp_path / "out.jsonl"
    running = score_process(labelled, out, str(client.base_url))
    try:
        deadline = time.monotonic() + 60
        while part_lines(out) < 2:
            assert running.poll() is None, running.stderr
            assert time.monotonic() < deadline
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=30)
    finally:
        running.kill()
    assert running.returncode == 130, told
    assert "the same command goes on from here" in told
    assert not out.exists()
    before = part_lines(out) - 1
    assert 0 < before < ROWS

    again = score_process(labelled, out, str(client.base_url))
    _, told = again.communicate(timeout=60)
    assert again.returncode == 0, told
    assert f"{ROWS} of {ROWS} rows scored" in told
    assert f"{before} texts known before" in told
    # The same model in another process: the same scores, but for what else was in the batch.
    for here, there in zip(read(scored_here), read(out), strict=True):
        assert there["judgement"]["content_hash"] == here["judgement"]["content_hash"]
        assert there["judgement"]["rubric_hash"] == here["judgement"]["rubric_hash"]
        assert there["harm_score"] == pytest.approx(here["harm_score"], abs=0.02)


def test_the_small_judge_agrees_with_the_rules_that_labelled(scored_here: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["calibrate", str(scored_here), "--json", "--report", str(page)])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert (figures["labels"], figures["scored"], figures["failed"]) == ("levels", ROWS, {})
    assert figures["auroc"]["value"] > 0.95
    assert figures["levels"]["kappa_quadratic"]["value"] > 0.8
    assert figures["auroc"]["low"] <= figures["auroc"]["value"] <= figures["auroc"]["high"]
    assert sum(b["rows"] for b in figures["bins"]) == ROWS
    assert "<svg" in page.read_text()


def test_calibrate_judges_what_nobody_has_judged_and_names_what_is_broken(
    judge: str, labelled: Path, tmp_path: Path
) -> None:
    source = tmp_path / "few.jsonl"
    source.write_text("".join(labelled.read_text().splitlines(keepends=True)[:20]) + "{broken\n")
    arguments = ["calibrate", str(source), "--rubric", RUBRIC, "--model", judge, *CPU, "--json"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert "line 21: not valid JSON" in str(refused.exception)
    done = CliRunner().invoke(app, [*arguments, "--skip-broken"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["scored"] == 20


def test_a_judge_that_is_wrong_about_what_is_known_scores_nothing(
    judge: str, labelled: Path, tmp_path: Path
) -> None:
    """The small judge can be read by harm-v1, and understands nothing of it."""
    out = tmp_path / "out.jsonl"
    arguments = ["score", str(labelled), "--out", str(out), "--rubric", "harm-v1", "--model", judge, *CPU]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert "is not to be trusted with rubric 'harm-v1': it missed" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_rubric_of_ones_own_in_the_api_and_the_worker(processes: Any, tmp_path: Path) -> None:
    folder = tmp_path / "rubrics"
    folder.mkdir()
    (folder / "mine.toml").write_text(
        'name = "no-medicine"\nscale = "binary"\nprefix = "Answer 1 for medical advice, else 0."\n'
        '[[question]]\nask = "0 or 1?"\nsuffix = "\\nAnswer:\\n"\nlabels = ["0", "1"]\n'
    )
    client = processes.api("--rubrics-dir", str(folder))
    processes.worker("--rubrics-dir", str(folder), "--rubric", "no-medicine", "--rubric", RUBRIC)
    pair = {"prompt": "p", "response": "take two"}
    body = {"items": [pair], "rubric": "no-medicine", "wait_s": 20}
    [verdict] = client.post("/v1/judgements", json=body).json()["items"]
    assert verdict["judge"]["rubric"] == "no-medicine"
    assert len(verdict["judge"]["rubric_hash"]) == 16
    refused = client.post("/v1/judgements", json={**body, "rubric": "no-such"})
    assert refused.status_code == 422
    assert "harm-v1, no-medicine, policy-v1" in refused.json()["detail"]
