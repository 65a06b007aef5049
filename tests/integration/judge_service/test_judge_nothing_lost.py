"""The benchmark of the same name, small: nothing is lost while everything is killed in turn."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.chaos import foreign
from benchmarks.chaos_judge import ChaosBackend, score_of
from benchmarks.chaos_producers import Seen
from judge_service.backends.base import Grade, GradeRequest
from shared.rubrics.rubric import load_rubric

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[3]


def test_nothing_is_lost_while_everything_is_killed_in_turn(tmp_path: Path) -> None:
    args = ["--items", "500", "--producers", "8", "--limit", "200", "--delay-s", "0.7", "--seeds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", *args],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "runs" / "bench" / "chaos.json").read_text())["rows"]
    found = {row["name"].removeprefix("seed 1: "): row for row in rows}
    assert all(row["ok"] for row in rows)
    assert found["acknowledged"]["value"] == 500
    # The kills hit while there was work, and the limit was reached.
    assert found["requests that met an outage"]["value"] > 0
    assert found["refusals by a full queue"]["value"] > 0
    for kind in ("api", "redis", "worker"):
        assert found[f"kills: {kind}"]["value"] >= 1


def test_a_second_judging_would_be_seen() -> None:
    seen = Seen()
    score = score_of("Answer 1 of 0.")
    seen.verdict({"id": "a", "status": "pending"})
    for _ in range(2):
        seen.verdict({"id": "a", "status": "scored", "score": score})
    assert seen.changed == set()
    seen.verdict({"id": "a", "status": "scored", "score": score + 0.01})
    assert seen.changed == {"a"}
    item = {"id": "a", "prompt": "p", "response": "Answer 1 of 0."}
    assert not foreign(item, {"status": "scored", "score": score + 0.049})
    assert foreign(item, {"status": "scored", "score": score_of("Answer 2 of 0.")})


def test_two_judgings_of_a_text_differ() -> None:
    request = GradeRequest(load_rubric("demo-v1"), "p", "Answer 1 of 0.")
    answers = asyncio.run(ChaosBackend(0).judge([request] * 100))
    assert len({answer.score for answer in answers if isinstance(answer, Grade)}) == 100
