"""Producers that submit through whatever breaks, and what they have seen of each item. For chaos.py."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.chaos_judge import RUBRIC

LARGEST_BATCH = 40


@dataclass
class Seen:
    """What all producers together have seen; shared by their threads."""

    acknowledged: set[str] = field(default_factory=set)
    verdicts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By id: the first terminal verdict that was read."""
    changed: set[str] = field(default_factory=set)
    """Ids of which two different verdicts were read."""
    unknown: set[str] = field(default_factory=set)
    """Acknowledged ids that the service then did not know."""
    refused_full: int = 0
    broken: int = 0
    """Requests that met something that was down."""
    wrong: list[str] = field(default_factory=list)
    """Answers that none of this may give."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def verdict(self, item: dict[str, Any]) -> None:
        if item["status"] == "pending":
            return
        with self.lock:
            first = self.verdicts.setdefault(item["id"], item)
            if first != item:
                self.changed.add(item["id"])

    def open_of(self, ids: Sequence[str]) -> list[str]:
        with self.lock:
            return [one for one in ids if one not in self.verdicts]


class Producer(threading.Thread):
    """Submits its items until each is acknowledged, and reads until each has its verdict."""

    def __init__(
        self, number: int, items: Sequence[dict[str, str]], urls: Sequence[str], seen: Seen, seed: int
    ) -> None:
        super().__init__(name=f"producer-{number}", daemon=True)
        self._items = items
        self._group = f"group-{number}"
        self._urls = urls
        self._seen = seen
        self._draw = random.Random(f"{seed}/producer/{number}")
        self.stopping = threading.Event()

    def run(self) -> None:
        with httpx.Client(timeout=8) as client:
            sent: list[list[dict[str, str]]] = []
            at = 0
            while at < len(self._items) and not self.stopping.is_set():
                size = self._draw.randint(1, LARGEST_BATCH)
                sent.append(list(self._items[at : at + size]))
                at += size
                self._submit(client, sent[-1])
                if self._draw.random() < 0.1:
                    # Again, as one does who did not hear the answer.
                    self._submit(client, self._draw.choice(sent))
            self._collect(client)

    def _submit(self, client: httpx.Client, items: list[dict[str, str]]) -> None:
        body = {
            "items": items,
            "rubric": RUBRIC,
            "group": self._group,
            "wait_s": self._draw.choice((0, 0, 0.5)),
        }
        while not self.stopping.is_set():
            answer = self._post(client, "/v1/judgements", body)
            if answer is not None and answer.status_code in (200, 202):
                with self._seen.lock:
                    self._seen.acknowledged.update(item["id"] for item in items)
                self._read(answer)
                return
            self._pause(answer)

    def _collect(self, client: httpx.Client) -> None:
        ids = [item["id"] for item in self._items]
        while (left := self._seen.open_of(ids)) and not self.stopping.is_set():
            answer = self._post(client, "/v1/judgements/read", {"ids": left[:256], "wait_s": 2})
            if answer is not None and answer.status_code == 200:
                self._read(answer)
            elif answer is not None and answer.status_code in (404, 410):
                with self._seen.lock:
                    self._seen.unknown.update(left[:256])
                return
            else:
                self._pause(answer)

    def _post(self, client: httpx.Client, path: str, body: dict[str, Any]) -> httpx.Response | None:
        try:
            return client.post(self._draw.choice(self._urls) + path, json=body)
        except httpx.HTTPError:
            with self._seen.lock:
                self._seen.broken += 1
            return None

    def _read(self, answer: httpx.Response) -> None:
        for item in json.loads(answer.content)["items"]:
            self._seen.verdict(item)

    def _pause(self, answer: httpx.Response | None) -> None:
        if answer is not None:
            with self._seen.lock:
                if answer.status_code != 503:
                    self._seen.wrong.append(f"{answer.status_code} {answer.text[:300]}")
                elif "do not fit" in answer.text:
                    self._seen.refused_full += 1
                else:
                    self._seen.broken += 1
        time.sleep(self._draw.uniform(0.05, 0.4))
