"""API keys, what one tenant sees of another (nothing), and how fast each may go."""

from __future__ import annotations

import base64
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.integration

Submission = Callable[..., dict[str, Any]]
Check = Callable[[httpx.Response, int], dict[str, Any]]


def test_without_a_key_nothing_is_read_or_taken(edge: Any, submission: Submission, problem: Check) -> None:
    with edge.client("keyed") as client:
        for headers, challenge in [
            ({}, 'Bearer realm="tether-judge"'),
            ({"Authorization": "Bearer wrong"}, 'error="invalid_token"'),
            ({"Authorization": f"Bearer {edge.keys['acme']}x"}, 'error="invalid_token"'),
            ({"Authorization": b"Bearer \xff\xfe"}, 'error="invalid_token"'),
            ({"Authorization": "Digest x"}, 'Bearer realm="tether-judge"'),
        ]:
            refused = client.post("/v1/judgements", json=submission(), headers=headers)  # type: ignore[arg-type]
            body = problem(refused, 401)
            assert challenge in refused.headers["www-authenticate"]
            assert "wrong" not in body["detail"]
        # Before the body is looked at.
        problem(client.post("/v1/judgements", content=b"{"), 401)
        for method, path in [
            ("GET", "/v1/judgements/x"),
            ("POST", "/v1/judgements/read"),
            ("DELETE", "/v1/judgements?group=g"),
            ("GET", "/v1/judgements/events?ids=x"),
            ("POST", "/v1/judgements/events"),
            ("POST", "/get_reward"),
            ("POST", "/v1/moderations"),
        ]:
            problem(client.request(method, path), 401)
        for path in ("/livez", "/readyz", "/metrics", "/openapi.json"):
            assert client.get(path).status_code == 200
        assert client.get("/openapi.json").json()["paths"]["/v1/judgements"]["post"]["security"]


def test_tenants_share_names_and_nothing_else(edge: Any, submission: Submission, problem: Check) -> None:
    body = submission(2, wait_s=20, group="job")
    other = submission(2, wait_s=20, group="job")
    other["items"][0]["response"] = "Another text under the same id."
    with edge.client("keyed", tenant="acme") as acme, edge.client("keyed", tenant="beta") as beta:
        first = acme.post("/v1/judgements", json=body)
        key = body["items"][1]["id"]
        problem(beta.get(f"/v1/judgements/{key}"), 404)
        problem(beta.post("/v1/judgements/read", json={"ids": [key]}), 404)
        problem(beta.post("/v1/judgements/read", json={"ids": [f"acme/{key}"]}), 404)
        problem(beta.get("/v1/judgements/events", params={"ids": key}), 404)
        # No conflict with the other's text, and none's id shows the tenant.
        second = beta.post("/v1/judgements", json=other)
        assert first.status_code == second.status_code == 200, (first.text, second.text)
        for answer in (first, second):
            assert [item["id"] for item in answer.json()["items"]] == [f"{key[:-1]}{n}" for n in range(2)]
            assert "acme" not in answer.text
        conflict = problem(beta.post("/v1/judgements", json=body), 409)
        assert "beta/" not in str(conflict)
        assert conflict["errors"][0]["field"] == "items[0].id"
        assert acme.get(f"/v1/judgements/{key}").json()["id"] == key


def test_a_group_is_cancelled_for_its_tenant_only(edge: Any, submission: Submission) -> None:
    # Under a prefix without a worker, so that the items stay queued.
    child = edge.start(
        "idle", "api", "--port", "0", "--keys-file", str(edge.keys_file),
        env={"TETHER_JUDGE_KEY_PREFIX": f"{edge.prefix}idle:"},
    )  # fmt: skip
    try:
        edge.children["idle"] = child
        with edge.client("idle", tenant="acme") as acme, edge.client("idle", tenant="beta") as beta:
            body = submission(2, group="job")
            for client in (acme, beta):
                assert client.post("/v1/judgements", json=body).status_code == 202
            assert acme.delete("/v1/judgements", params={"group": "job"}).json()["cancelled"] == 2
            key = body["items"][0]["id"]
            verdict = acme.get(f"/v1/judgements/{key}").json()
            assert (verdict["id"], verdict["error"]["message"]) == (key, "cancelled")
            assert beta.get(f"/v1/judgements/{key}").json() == {"id": key, "status": "pending"}
    finally:
        child.stop()


def test_a_tenants_rate_holds_over_all_processes(edge: Any, name: str, problem: Check) -> None:
    """8 at once, then 4 a second, whichever API process is asked."""

    def items(start: int, count: int) -> dict[str, Any]:
        made = [{"id": f"{name}-{n}", "prompt": "p", "response": "r"} for n in range(start, start + count)]
        return {"items": made, "rubric": "demo-v1"}

    second = edge.start("keyed-2", "api", "--port", "0", "--keys-file", str(edge.keys_file))
    try:
        edge.children["keyed-2"] = second
        with edge.client("keyed", tenant="slow") as one, edge.client("keyed-2", tenant="slow") as two:
            # More than can ever be admitted will not get better by waiting.
            too_many = problem(one.post("/v1/judgements", json=items(0, 9)), 422)
            assert too_many["errors"] == [{"field": "items", "message": "at most 8 for this tenant"}]
            assert one.post("/v1/judgements", json=items(0, 5)).is_success
            assert two.post("/v1/judgements", json=items(5, 3)).is_success
            began = time.monotonic()
            limited = one.post("/v1/judgements", json=items(8, 8))
            assert "none was admitted" in problem(limited, 429)["detail"]
            problem(one.get(f"/v1/judgements/{name}-8"), 404)
            assert limited.headers["retry-after"] == "2"
            # Reading is not limited, nor is another tenant.
            assert one.get(f"/v1/judgements/{name}-0").is_success
            with edge.client("keyed", tenant="beta") as beta:
                assert beta.post("/v1/judgements", json=items(0, 9)).is_success
            deadline = began + 20
            while not (last := two.post("/v1/judgements", json=items(8, 8))).is_success:
                assert last.status_code == 429
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert time.monotonic() - began >= 1.8
    finally:
        second.stop()


def test_a_key_in_the_url_serves_clients_that_know_no_header(edge: Any, submission: Submission) -> None:
    credentials = base64.b64encode(f"any:{edge.keys['acme']}".encode()).decode()
    with edge.client("keyed") as client:
        answer = client.post(
            "/v1/judgements", json=submission(), headers={"Authorization": f"Basic {credentials}"}
        )
    assert answer.is_success


def test_the_command_makes_lists_and_removes_keys(edge: Any) -> None:
    def keys(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "judge_service.cli", "keys", args[0], "--keys-file", str(edge.keys_file),
             *args[1:]],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    made = keys("add", "--tenant", "gamma", "--items-per-s", "100")
    key = made.stdout.strip()
    assert key.startswith("tether_"), made
    assert key not in edge.keys_file.read_text()
    listed = keys("list").stdout
    assert "gamma: 100 items/s, 1000 at once" in listed
    assert key not in listed
    with edge.client("keyed") as client:
        headers = {"Authorization": f"Bearer {key}"}

        def reaches(status: int) -> bool:
            """Within the second in which a running service takes up a changed file, and some."""
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                if client.get("/v1/judgements/nobody", headers=headers).status_code == status:
                    return True
                time.sleep(0.05)
            return False

        assert reaches(404)
        key_id = listed[listed.index("gamma") :].split()[6]
        assert keys("remove", key_id).stdout.strip() == f"removed {key_id} of tenant gamma"
        assert reaches(401)
    assert "no key" in keys("remove", key_id).stderr
