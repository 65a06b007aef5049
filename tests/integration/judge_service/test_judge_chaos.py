"""The benchmark of the same name, small: nothing is lost while everything is killed in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[3]


def test_nothing_is_lost_while_everything_is_killed_in_turn(tmp_path: Path) -> None:
    args = ["--items", "700", "--producers", "8", "--limit", "200", "--delay-s", "0.7", "--seeds", "1"]
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
    assert found["acknowledged"]["value"] == 700
    # The kills hit while there was work, and the limit was reached.
    assert found["requests that met an outage"]["value"] > 0
    assert found["refusals by a full queue"]["value"] > 0
    for kind in ("api", "redis", "worker"):
        assert found[f"kills: {kind}"]["value"] >= 1
