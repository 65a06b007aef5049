"""What a user outside of the containers does, over HTTP alone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from typing import Any

import httpx


class Api:
    """Asks until it is answered: services are killed while it speaks. What it sends may be sent again."""

    def __init__(self, port: int, key: str, patience_s: float) -> None:
        self.key = key
        headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60)
        self._patience_s = patience_s

    def close(self) -> None:
        self._http.close()

    def ask(self, method: str, path: str, **request: Any) -> Any:
        """Raises AssertionError for a 4xx, or when it took too long."""
        end = time.monotonic() + self._patience_s
        while True:
            try:
                answer = self._http.request(method, path, **request)
            except httpx.TransportError as error:
                trouble = repr(error)
            else:
                if answer.is_success:
                    return answer.json()
                assert answer.status_code >= 500 or answer.status_code == 429, answer.text
                trouble = answer.text
            assert time.monotonic() < end, f"{method} {path}: {trouble}"
            time.sleep(0.5)

    def now(self, path: str) -> Any | None:
        """The answer, or None where there is no good one at the moment."""
        try:
            answer = self._http.get(path)
        except httpx.TransportError:
            return None
        return answer.json() if answer.is_success else None


class Trainer(Api):
    def upload(self, rows: Sequence[object]) -> str:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        files = {"file": ("train.jsonl", text)}
        return str(self.ask("POST", "/v1/files", data={"purpose": "fine-tune"}, files=files)["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        found = self.ask("GET", f"/v1/fine_tuning/jobs/{job_id}")
        assert isinstance(found, dict)
        return found

    def step(self, job_id: str) -> int:
        """Of the newest metrics; -1 before any."""
        page = self.ask("GET", f"/v1/fine_tuning/jobs/{job_id}/events", params={"limit": 50})
        steps = [event["data"]["step"] for event in page["data"] if event["type"] == "metrics"]
        return max(steps, default=-1)


class Judge(Api):
    def taking(self) -> int:
        """Workers that would take an item now."""
        said = self.now("/readyz")
        if said is None:
            return 0
        workers = said["components"]["workers"]
        return int(workers["alive"]) - len(workers["not_taking"])

    def submit(self, items: Sequence[dict[str, Any]]) -> None:
        self.ask("POST", "/v1/judgements", json={"items": list(items), "rubric": "demo-v1"})

    def verdicts(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        found = {}
        for begin in range(0, len(ids), 256):
            part = list(ids[begin : begin + 256])
            answer = self.ask("POST", "/v1/judgements/read", json={"ids": part})
            for verdict in answer["items"]:
                assert verdict["id"] not in found
                found[verdict["id"]] = verdict
        return found


class Stream:
    """Submits judgements all the while, each with an id of its own, and remembers what was acknowledged."""

    def __init__(self, judge: Judge, pairs: Sequence[tuple[str, str]], batch: int = 8) -> None:
        self._judge = judge
        self._batches = [
            [
                {"id": f"outside-{n}", "prompt": prompt, "response": response}
                for n, (prompt, response) in enumerate(pairs)
            ][begin : begin + batch]
            for begin in range(0, len(pairs), batch)
        ]
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="judgements")
        self.acknowledged: list[str] = []
        self.failure: AssertionError | None = None

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for batch in self._batches:
                if self._end.is_set():
                    return
                self._judge.submit(batch)
                self.acknowledged += [item["id"] for item in batch]
                self._end.wait(1.0)
        except AssertionError as error:
            self.failure = error
