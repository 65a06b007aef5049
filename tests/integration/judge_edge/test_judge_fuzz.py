"""Whatever the document allows, and much that it does not, against the running service."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

pytestmark = pytest.mark.integration

# The document cannot say which rubrics there are, nor that ids are distinct: right by it is not always right.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,missing_required_header,unsupported_method,"
    "allow_header_conformance,use_after_free,ensure_resource_availability,ignored_auth"
)


def test_no_request_finds_a_500_or_an_answer_that_the_document_does_not_know(
    edge: Any, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"{edge.url('open')}/openapi.json",
         "--phases", "examples,coverage,fuzzing", "--max-examples", "10", "--seed", "1", "--checks", CHECKS,
         "--request-timeout", "40", "--continue-on-failure", "--no-shrink", "--warnings", "off"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\b\d{3,} generated, \d{3,} passed", done.stdout), done.stdout[-3000:]
    log = edge.log("open")
    assert '"code": 500' not in log
    assert '"code": 503' not in log


def test_where_a_key_is_wanted_it_is_never_forgotten(edge: Any, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"{edge.url('keyed')}/openapi.json",
         "--phases", "examples", "--seed", "1", "--checks", "ignored_auth,not_a_server_error",
         "-H", f"Authorization: Bearer {edge.keys['acme']}", "--request-timeout", "40", "--no-shrink"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_a_full_queue_is_a_problem_with_retry_after_whatever_is_sent(edge: Any) -> None:
    env = {"TETHER_JUDGE_KEY_PREFIX": f"{edge.prefix}full:"}
    api = edge.start("full", "api", "--port", "0", "--queue-limit", "1", env=env)
    try:
        url = api.ready["url"]
        item = {"prompt": "p", "response": "r"}
        first = httpx.post(f"{url}/v1/judgements", json={"items": [item], "rubric": "demo-v1"})
        assert first.status_code == 202
        document = schemathesis.openapi.from_url(f"{url}/openapi.json")
        writing = document.include(path=["/v1/judgements", "/get_reward", "/v1/moderations"], method="POST")
        statuses: list[int] = []

        @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=writing.as_strategy())
        def send(case: Any) -> None:
            if isinstance(case.body, dict) and "rubric" in case.body:
                case.body["rubric"] = "demo-v1"
            response = case.call(base_url=url, timeout=40)
            statuses.append(response.status_code)
            assert response.status_code in (200, 202, 400, 409, 413, 415, 422, 503), response.text
            if response.status_code == 503:
                assert response.headers["content-type"] == ["application/problem+json"]
                assert int(response.headers["retry-after"][0]) >= 1
                assert response.json()["status"] == 503

        send()
        assert statuses.count(503) >= 5
    finally:
        api.stop()
