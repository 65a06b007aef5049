"""The guard's application, and the route of the trainer's API that hands on to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from shared.errors import ConfigError, ModelError
from trainer.api.app import create_app as create_api
from trainer.api.config import ApiConfig
from trainer.guard.app import create_app
from trainer.guard.cli import app as command
from trainer.guard.main import serve
from trainer.guard.reading import Guard, open_guard
from trainer.guard.wire import GuardReading, GuardRequest
from trainer.jobs.store import Store
from trainer.probe.run import fit_probe

HARMFUL, HARMLESS = "w21 w24 w28 w25", "w1 w4 w8 w5"


@pytest.fixture(scope="module")
def probe_folder(
    tiny_model: Path, save_rows: Any, labelled_rows: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("guard")
    fit_probe(tiny_model, [save_rows(folder / "rows.jsonl", labelled_rows(300))], folder / "probe", folds=2)
    return folder / "probe"


@pytest.fixture(scope="module")
def guard(tiny_model: Path, probe_folder: Path) -> Guard:
    return open_guard(tiny_model, probe_folder)


@pytest.fixture(scope="module")
def client(guard: Guard) -> Iterator[TestClient]:
    with TestClient(create_app(guard)) as opened:
        yield opened


def test_risk_decision_and_latency(client: TestClient) -> None:
    harmful, harmless = (
        client.post("/v1/guard", json={"input": text}).json() for text in (HARMFUL, HARMLESS)
    )
    assert harmful["flagged"] is True
    assert harmless["flagged"] is False
    assert harmful["risk"] > harmful["threshold"] > harmless["risk"]
    assert harmful["target_fpr"] == 0.01
    assert harmful["timings"]["read_ms"] > 0
    assert harmful["tokens"] == 6  # user, four words, assistant
    assert set(harmful) == set(GuardReading.model_fields)


def test_a_conversation_is_read_whole(client: TestClient) -> None:
    turns = [
        {"role": "user", "content": HARMFUL},
        {"role": "assistant", "content": "w0"},
        {"role": "user", "content": "w1"},
    ]
    found = client.post("/v1/guard", json={"input": turns}).json()
    assert found["tokens"] == 10
    assert found["risk"] != client.post("/v1/guard", json={"input": "w1"}).json()["risk"]


@pytest.mark.parametrize("source", ["memory", "tool"])
def test_what_an_agent_reads(client: TestClient, source: str) -> None:
    found = client.post("/v1/guard", json={"input": HARMFUL, "source": source}).json()
    assert (found["source"], found["flagged"]) == (source, True)


def test_another_rate_is_another_threshold(client: TestClient) -> None:
    strict, lax = (
        client.post("/v1/guard", json={"input": HARMFUL, "target_fpr": fpr}).json()["threshold"]
        for fpr in (0.01, 0.1)
    )
    assert strict >= lax


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"input": ""}, "input", "the prompt is empty"),
        ({"input": "  "}, "input", "the prompt is empty"),
        ({"input": "w1 " * 80}, "input", "tokens, more than the model's context of 64; it was not read"),
        ({"input": [{"role": "assistant", "content": "w1"}]}, "input", "the last turn is the assistant's"),
        ({"input": [{"role": "user", "content": "w1"}], "source": "tool"}, "input", "a tool is a text"),
        (
            {"input": "w1", "target_fpr": 0.0001},
            "target_fpr",
            "no threshold for a false-positive rate of 0.0001",
        ),
        ({"input": "w1", "source": "web"}, "source", "Input should be 'prompt', 'memory' or 'tool'"),
        ({"input": "w1", "more": 1}, "more", "Extra inputs are not permitted"),
        ({}, "input", "Field required"),
    ],
)
def test_what_cannot_be_read(client: TestClient, body: Any, param: str, said: str) -> None:
    answer = client.post("/v1/guard", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert said in error["message"]
    assert error["param"] == param


def test_a_body_that_is_no_json_or_too_long(client: TestClient) -> None:
    assert client.post("/v1/guard", content=b"{").json()["error"]["code"] == "invalid_json"
    long = client.post("/v1/guard", content=b" " * (3 * 1024 * 1024))
    assert long.json()["error"]["code"] == "body_too_large"


def test_too_many_waiting_are_sent_away(guard: Guard) -> None:
    begun, release = threading.Event(), threading.Event()

    class Slow:
        probe = guard.probe

        def read(self, request: GuardRequest, queue_ms: float) -> GuardReading:
            begun.set()
            release.wait(30)
            return guard.read(request, queue_ms)

    with TestClient(create_app(Slow(), max_waiting=1)) as client:  # type: ignore[arg-type]
        answers: list[Any] = []
        first = threading.Thread(
            target=lambda: answers.append(client.post("/v1/guard", json={"input": "w1"}))
        )
        first.start()
        assert begun.wait(30)
        try:
            turned_away = client.post("/v1/guard", json={"input": "w2"})
        finally:
            release.set()
            first.join()
    assert turned_away.status_code == 503
    assert turned_away.json()["error"]["code"] == "overloaded"
    assert turned_away.headers["retry-after"] == "1"
    assert answers[0].status_code == 200


def test_a_key_is_asked_for(guard: Guard) -> None:
    with TestClient(create_app(guard, api_key="secret")) as client:
        assert client.post("/v1/guard", json={"input": "w1"}).status_code == 401
        headers = {"authorization": "Bearer secret"}
        assert client.post("/v1/guard", json={"input": "w1"}, headers=headers).status_code == 200
        assert client.get("/livez").status_code == 200


def test_another_models_probe_is_refused(
    probe_folder: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="this probe was fitted on another model"):
        open_guard(make_model(tmp_path / "other", seed=3), probe_folder)


def test_a_network_needs_a_key(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--host 0\.0\.0\.0 is reached from a network: give --api-key-file"
    ):
        serve(tmp_path, tmp_path, host="0.0.0.0")


def test_one_text_on_the_command_line(tiny_model: Path, probe_folder: Path) -> None:
    options = ["--model", str(tiny_model), "--probe", str(probe_folder)]
    flagged = CliRunner().invoke(command, ["check", "-", *options], input=HARMFUL)
    assert flagged.exit_code == 3, flagged.output
    assert flagged.output.startswith("flagged: risk ")
    passed = CliRunner().invoke(command, ["check", HARMLESS, *options, "--json"])
    assert passed.exit_code == 0, passed.output
    assert GuardReading.model_validate_json(passed.output).flagged is False


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        (None, "guard_not_configured", "start one with `tether guard serve`"),
        ("http://127.0.0.1:9", "guard_unavailable", "the guard at http://127.0.0.1:9 gave no answer"),
    ],
)
def test_the_api_without_its_guard(tmp_path: Path, url: str | None, code: str, said: str) -> None:
    config = ApiConfig(state_dir=tmp_path, models_file=tmp_path / "models.yaml", guard_url=url)
    with Store(tmp_path / "jobs.sqlite") as store, TestClient(create_api(config, store)) as client:
        answer = client.post("/v1/guard", json={"input": "w1"})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == code
    assert said in answer.json()["error"]["message"]
