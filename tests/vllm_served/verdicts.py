"""Verdicts from the service."""

from __future__ import annotations

from typing import Any

import httpx


def submit(
    client: httpx.Client, rubric: str, items: list[dict[str, Any]], **fields: Any
) -> list[dict[str, Any]]:
    """All verdicts, in the order of the items."""
    answer = client.post("/v1/judgements", json={"items": items, "rubric": rubric, "wait_s": 30, **fields})
    assert answer.status_code in (200, 202), answer.text
    verdicts = answer.json()["items"]
    ids = [verdict["id"] for verdict in verdicts]
    deadline = 20
    while any(verdict["status"] == "pending" for verdict in verdicts):
        deadline -= 1
        assert deadline, "the verdicts did not come"
        verdicts = client.post("/v1/judgements/read", json={"ids": ids, "wait_s": 30}).json()["items"]
    return list(verdicts)
