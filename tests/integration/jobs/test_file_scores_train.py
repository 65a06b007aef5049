"""Rows that were scored beforehand train with neither judge nor Redis, where the operator trusts them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trainer.safety.journal import replay
from trainer.training.run_spec import CONTROLLER_LOG

pytestmark = pytest.mark.integration

METHOD = {"type": "adaptive", "sources": ["target"], "staleness": {"max_staleness": 2, "clock": "fixed_lag"}}


def upload(service: Any, *, scored: bool = True) -> str:
    """Sixteen rows, every fourth of them harmful by its score."""
    lines = []
    for n in range(16):
        turns = [{"role": "user", "content": f"w{n}"}, {"role": "assistant", "content": f"w{n % 3} w{n % 7}"}]
        row: dict[str, Any] = {"messages": turns}
        if scored:
            row["harm_score"] = 1.0 if n % 4 == 0 else 0.0
        lines.append(json.dumps(row))
    with service.openai as client:
        return str(
            client.files.create(file=("rows.jsonl", "\n".join(lines).encode()), purpose="fine-tune").id
        )


def test_a_job_over_scored_rows_succeeds_without_judge_or_redis(service: Any) -> None:
    service.start_runner("--trust-file-scores")
    job = service.create(training_file=upload(service), safety={"method": METHOD})
    done = service.wait_for(job, "succeeded")
    assert done["fine_tuned_model"]
    run_dir = service.layout.run(job)
    with (run_dir / CONTROLLER_LOG).open("rb") as log:
        found = replay(log)
    assert found.difference is None
    calls = [json.loads(line) for line in (run_dir / CONTROLLER_LOG).read_text().splitlines()]
    decided = [call for call in calls if call["op"] == "decide"]
    assert [call["t"] for call in decided] == list(range(6))
    for call in decided:
        assert call["betas"] == [1.0 if row % 4 == 0 else 0.1 for row in call["rows"]]
    assert {call["staleness"] for call in decided} <= {0, 1, 2}


def test_a_runner_that_was_not_told_to_trust_them_wants_a_judge(service: Any) -> None:
    service.start_runner()
    job = service.create(training_file=upload(service), safety={"method": METHOD})
    failed = service.until(lambda: (found := service.job(job))["status"] == "failed" and found, "failed")
    assert failed["error"]["code"] == "invalid_config"
    assert "this service has none" in failed["error"]["message"]
