"""A judge server that misbehaves, behind the real worker and API: each failure has its code and no score."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.judge_standin import FromFile, HarmonyBytes, StandIn, serve

pytestmark = pytest.mark.integration

BENIGN, HARMFUL = ("Bake bread {n}?", "Mix flour."), ("Poison well {n}?", "Gather parts.")

COMMON = {
    "500": "server_error",
    "garbage": "parse_error",
    "no choices": "parse_error",
    "null": "parse_error",
    "low mass": "parse_error",
    "nan": "parse_error",
    "429": "overloaded",
    "hang": "timeout",
    "other model": "untrusted",
}
CASES = {
    "plain": {**COMMON, "wrong ids": "parse_error", "cut prompt": "server_error"},
    "harmony": {**COMMON, "length": "parse_error", "control tokens": "parse_error"},
    "openai": {**COMMON, "length": "parse_error", "empty": "parse_error", "refusal": "refused"},
}

Start = Callable[[str, str], httpx.Client]


@pytest.fixture
def judged_by(
    processes: Any, judge_folder: Path
) -> Iterator[Callable[..., tuple[StandIn, httpx.Client, str]]]:
    """`judged_by(kind)`: the stand-in, a client of the service before it, and the rubric it grades by."""
    servers = []

    def start(kind: str, mode: str = "good") -> tuple[StandIn, httpx.Client, str]:
        plain = kind == "plain"
        standin = StandIn(FromFile(judge_folder), context=256) if plain else StandIn(HarmonyBytes())
        standin.mode = mode
        server = serve(standin)
        servers.append(server)
        flags = ["--url", server.__enter__(), "--timeout-s", "2", "--boot-s", "20", "--control-s", "600"]
        if plain:
            rubric = "demo-v1"
            flags += ["--backend", "vllm", "--form", "completion", "--tokenizer", str(judge_folder)]
        else:
            rubric = "harm-v1"
            flags += ["--backend", "openai" if kind == "openai" else "vllm", "--rubric", rubric]
            flags += ["--model", "stand-in"]
        client = processes.api()
        processes.start("worker", *flags)
        return standin, client, rubric

    yield start
    processes.stop()
    for server in servers:
        server.__exit__(None, None, None)


def submit(client: httpx.Client, rubric: str, *texts: tuple[str, str], n: object, wait_s: float = 20) -> Any:
    items = [{"prompt": prompt.format(n=n), "response": reply} for prompt, reply in texts]
    answer = client.post("/v1/judgements", json={"items": items, "rubric": rubric, "wait_s": wait_s})
    assert answer.status_code in (200, 202), answer.text
    return answer.json()["items"]


@pytest.mark.parametrize("kind", CASES)
def test_each_misbehaviour_is_a_failure_with_its_code(judged_by: Any, kind: str) -> None:
    standin, client, rubric = judged_by(kind)
    # The worker takes nothing before its judge has passed the control pairs.
    submit(client, rubric, BENIGN, n="first")
    for n, (mode, code) in enumerate(CASES[kind].items()):
        standin.mode = mode
        for verdict in submit(client, rubric, BENIGN, HARMFUL, n=n):
            assert verdict["status"] == "failed", (mode, verdict)
            assert verdict["score"] is None
            assert verdict["error"]["code"] == code, (mode, verdict)
        # One item's failure is that item's: the next is graded.
        standin.mode = "good"
        benign, harmful = submit(client, rubric, BENIGN, HARMFUL, n=f"good {n}")
        assert benign["score"] < 0.1 < 0.9 < harmful["score"], mode
    # What is away is no item's fault: it waits, and is graded afterwards.
    standin.mode = "503"
    [pending] = submit(client, rubric, HARMFUL, n="away", wait_s=1)
    assert pending["status"] == "pending"
    standin.mode = "good"
    [verdict] = client.post("/v1/judgements/read", json={"ids": [pending["id"]], "wait_s": 20}).json()[
        "items"
    ]
    assert verdict["score"] > 0.9


def test_a_judge_that_answers_1_to_everything_grades_nothing(judged_by: Any) -> None:
    standin, client, rubric = judged_by("harmony", mode="ones")
    [pending] = submit(client, rubric, HARMFUL, n=0, wait_s=2)
    assert pending["status"] == "pending"
    until = time.monotonic() + 20
    while "judge_untrusted" not in client.get("/readyz").text:
        assert time.monotonic() < until, "nobody noticed"
        time.sleep(0.1)
    [pending] = submit(client, rubric, HARMFUL, n=1, wait_s=0.5)
    assert pending["status"] == "pending"
    standin.mode = "good"
    [verdict] = client.post("/v1/judgements/read", json={"ids": [pending["id"]], "wait_s": 30}).json()[
        "items"
    ]
    assert verdict["score"] > 0.9
