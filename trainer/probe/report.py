"""What `tether probe eval` found: a table, and `eval.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table

from trainer.probe.evaluate import NAMES, PROBE, Outcome
from trainer.probe.metrics import Estimate
from trainer.probe.splits import Skipped
from trainer.probe.store import Card


def as_json(card: Card, outcomes: Sequence[Outcome | Skipped]) -> dict[str, Any]:
    return {
        "probe": {
            "head": card.head,
            "model": card.model,
            "fingerprint": card.fingerprint,
            "data_hash": card.data_hash,
        },
        "outcomes": [asdict(outcome) for outcome in outcomes if isinstance(outcome, Outcome)],
        "skipped": [asdict(outcome) for outcome in outcomes if isinstance(outcome, Skipped)],
    }


def table(outcomes: Sequence[Outcome | Skipped]) -> Table:
    """A line for the probe and each control under every split."""
    shown = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), title="held-out rows; 95 % bootstrap intervals")
    for title in ("", "", "AUROC", "AUPRC", "recall at 1 % FPR", "at 5 %", "ECE"):
        shown.add_column(title, justify="left" if not title else "right")
    for outcome in outcomes:
        if isinstance(outcome, Skipped):
            shown.add_row(outcome.name, f"not tried: {outcome.reason}")
            continue
        title = f"{outcome.name} ({outcome.harmful}/{outcome.tested} harmful, head {outcome.head})"
        for name in NAMES:
            if name not in outcome.rankings:
                continue
            found = outcome.rankings[name]
            shown.add_row(
                title,
                name,
                told(found.auroc),
                told(found.auprc),
                told(found.recall_at_1_fpr),
                told(found.recall_at_5_fpr),
                told(outcome.reliability.ece) if name == PROBE else "",
            )
            title = ""
    return shown


def told(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
