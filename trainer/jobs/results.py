"""The result files of a job: its metrics, as OpenAI's clients expect them and whole."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Sequence
from typing import Any

from shared.jobs import File
from trainer.jobs import ids
from trainer.jobs.layout import Layout

COLUMNS = {
    "step": "step",
    "train_loss": "loss",
    "nll": "nll",
    "kl": "kl",
    "beta": "beta",
    "risk": "risk",
    "staleness": "staleness",
    "wait_s": "wait_s",
    "step_s": "step_s",
    "learning_rate": "learning_rate",
    "tokens": "tokens",
}
"""CSV column -> name in the metrics. `train_loss` is OpenAI's name."""


def write_results(layout: Layout, job_id: str, metrics: Sequence[dict[str, Any]]) -> list[File]:
    """One CSV and one JSONL in the directory of files; none where no step was trained."""
    if not metrics:
        return []
    return [
        _write(layout, f"{job_id}-metrics.csv", as_csv(metrics)),
        _write(layout, f"{job_id}-metrics.jsonl", "".join(json.dumps(row) + "\n" for row in metrics)),
    ]


def as_csv(metrics: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in metrics:
        writer.writerow(row.get(name) for name in COLUMNS.values())
    return text.getvalue()


def _write(layout: Layout, name: str, text: str) -> File:
    file_id = ids.file_id()
    raw = text.encode("utf-8")
    layout.file(file_id).write_bytes(raw)
    return File(
        id=file_id, bytes=len(raw), created_at=int(time.time()), filename=name, purpose="fine-tune-results"
    )
