"""The key with which our own clients speak to a judge that wants one."""

from __future__ import annotations

import os

VARIABLE = "TETHER_JUDGE_API_KEY"


def judge_headers(api_key: str | None) -> dict[str, str]:
    """`Authorization` with the key given, else with what TETHER_JUDGE_API_KEY holds; empty without either."""
    key = api_key or os.environ.get(VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}
