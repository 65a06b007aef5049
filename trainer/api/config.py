"""What the API's process is told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from shared.settings import Settings


class ApiConfig(Settings):
    state_dir: Path
    models_file: Path
    api_key: str | None = None
    """Bearer token of the OpenAI routes; None: open, for a machine of one's own."""
    max_file_bytes: int = Field(default=512 * 1024 * 1024, gt=0)
    """Of one uploaded file. 512 MiB is OpenAI's limit."""
    max_body_bytes: int = Field(default=1024 * 1024, gt=0)
    """Of a JSON body."""
    guard_url: str | None = None
    """Of the process that answers /v1/guard; None: there is none."""
