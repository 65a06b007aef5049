"""Where things lie in the state directory, which API, runner and ranks share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    root: Path

    @property
    def database(self) -> Path:
        return self.root / "jobs.sqlite3"

    @property
    def files(self) -> Path:
        return self.root / "files"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def models(self) -> Path:
        return self.root / "models.yaml"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def file(self, file_id: str) -> Path:
        return self.files / file_id

    def run(self, job_id: str) -> Path:
        return self.runs / job_id

    def create(self) -> Layout:
        for folder in (self.root, self.files, self.runs):
            folder.mkdir(parents=True, exist_ok=True)
        return self
