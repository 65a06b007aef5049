"""A benchmark's table on the terminal, and `runs/bench/NAME.json` beside it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    name: str
    value: float
    unit: str
    limit: float | None = None
    """What `value` must not pass; None: reported only."""
    better: Literal["lower", "higher"] = "lower"

    @property
    def ok(self) -> bool:
        if self.limit is None:
            return True
        return self.value <= self.limit if self.better == "lower" else self.value >= self.limit


def write(name: str, rows: list[Row]) -> int:
    """Prints and saves; the exit status says whether every limit is kept."""
    table = Table("", "value", "limit", "", title=name)
    for row in rows:
        limit = "" if row.limit is None else f"{'<=' if row.better == 'lower' else '>='} {row.limit:g}"
        mark = "" if row.limit is None else "ok" if row.ok else "PAST ITS LIMIT"
        table.add_row(row.name, f"{row.value:.4g} {row.unit}", limit, mark)
    Console().print(table)
    path = Path("runs") / "bench" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    report = {
        "name": name,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python {sys.version.split()[0]}",
        "commit": commit or "unknown",
        "rows": [{**asdict(row), "ok": row.ok} for row in rows],
    }
    path.write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(f"written to {path}")
    return 0 if all(row.ok for row in rows) else 1
