"""The guard as a process of its own, asked through the trainer's API; and when it is gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from shared.processes import Child, start_module

ENV = {"OMP_NUM_THREADS": "1"}


def labelled(path: Path) -> Path:
    """Harmful ones are about w20..w27, the others about w0..w7."""
    random = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as out:
        for number in range(240):
            harmful = number % 2 == 1
            words = random.integers(0, 8, size=5) + 20 * harmful
            out.write(json.dumps({"prompt": " ".join(f"w{w}" for w in words), "label": harmful}) + "\n")
    return path


def test_the_api_hands_on_to_the_guard(service: Any, tiny_base: Path, tmp_path: Path) -> None:
    from trainer.probe.run import fit_probe

    fit_probe(tiny_base, [labelled(tmp_path / "rows.jsonl")], tmp_path / "probe", folds=2)
    key = tmp_path / "key"
    key.write_text("secret\n")
    guard: Child = start_module(
        "trainer.guard.main",
        [str(tiny_base), "--probe", str(tmp_path / "probe"), "--port", "0", "--api-key-file", str(key)],
        env=ENV,
        log=tmp_path / "guard.log",
    )
    try:
        service.start_api("--guard-url", guard.ready["url"], "--api-key-file", str(key))
        headers = {"authorization": "Bearer secret"}
        with service.http as client:
            asked = {"input": "w21 w24 w27 w22 w23"}
            harmful = client.post("/v1/guard", json=asked, headers=headers)
            assert harmful.status_code == 200, harmful.text
            assert harmful.json()["flagged"] is True
            harmless = client.post("/v1/guard", json={"input": "w1 w4 w7 w2 w3"}, headers=headers).json()
            assert harmless["flagged"] is False
            assert harmless["risk"] < harmless["threshold"] < harmful.json()["risk"]
            empty = client.post("/v1/guard", json={"input": " "}, headers=headers)
            assert empty.status_code == 400
            assert "the prompt is empty" in empty.json()["error"]["message"]
            assert client.post("/v1/guard", json=asked).status_code == 401
            guard.stop()
            gone = client.post("/v1/guard", json=asked, headers=headers)
            assert gone.status_code == 503
            assert gone.json()["error"]["code"] == "guard_unavailable"
    finally:
        guard.stop()
