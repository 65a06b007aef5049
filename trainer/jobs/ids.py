"""Identifiers, as OpenAI's look. Random, so that none can be guessed from another."""

from __future__ import annotations

import secrets


def job_id() -> str:
    return f"ftjob-{secrets.token_hex(12)}"


def file_id() -> str:
    return f"file-{secrets.token_hex(12)}"


def event_id() -> str:
    return f"ftevent-{secrets.token_hex(12)}"


def checkpoint_id() -> str:
    return f"ftckpt-{secrets.token_hex(12)}"


def fine_tuned_model(base: str, suffix: str | None, job: str) -> str:
    """`ft:tether-tiny:suffix:abc123`; the last part is the end of the job's id."""
    return f"ft:{base}:{suffix or ''}:{job[-6:]}"
