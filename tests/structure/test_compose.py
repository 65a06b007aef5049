"""docker-compose.yml: valid by the specification's schema, every reference resolved, and locked down."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from tests.structure.compose_file import ROOT, TEXT, VARIABLE, compose, services

PROFILES = ["cpu", "gpu", "monitoring", "monitoring-gpu"]
SCHEMA = json.loads((Path(__file__).parent / "compose" / "compose-spec.json").read_text(encoding="utf-8"))
# The schema's own dialect is not registered with validators; it is the draft that it extends by nothing.
VALID = jsonschema_rs.Draft202012Validator(
    {**SCHEMA, "$schema": "https://json-schema.org/draft/2020-12/schema"}
)
SCALED = ["judge-api", "judge-worker", "judge-worker-cpu", "trainer-api"]
OWN_IMAGE = re.compile(r"tether/[a-z-]+:dev")

every = pytest.mark.parametrize("name", sorted(compose()["services"]))


def service(name: str) -> dict[str, Any]:
    found = compose()["services"][name]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"JUDGE_GPUS": "0,1", "TRAINER_GPUS": "2,3,4,5,6,7", "TETHER_ADDRESS": "0.0.0.0"},
        {"JUDGE_GPUS": "none", "TRAINER_GPUS": "0", "TORCH_CPU_INDEX": "", "ENCODINGS_DIR": "./encodings"},
    ],
    ids=["defaults", "eight GPUs", "one GPU"],
)
def test_it_is_valid_by_the_specification(environment: dict[str, str]) -> None:
    assert [(list(e.instance_path), e.message) for e in VALID.iter_errors(compose(environment))] == []


def test_the_schema_sees_a_mistake() -> None:
    wrong = compose()
    devices = wrong["services"]["vllm"]["deploy"]["resources"]["reservations"]["devices"]
    devices[0]["device_ids"] = "0"
    assert not VALID.is_valid(wrong)


def test_the_gpus_that_are_asked_for_are_the_ones_that_are_given() -> None:
    running = services("gpu", environment={"JUDGE_GPUS": "0,1", "TRAINER_GPUS": "2,3"})
    given = {
        name: device["device_ids"]
        for name, service in running.items()
        for device in service.get("deploy", {})
        .get("resources", {})
        .get("reservations", {})
        .get("devices", [])
    }
    # One entry: Docker joins the list with commas for NVIDIA's runtime, and compose replaces text, not lists.
    assert given == {"vllm": ["0,1"], "runner": ["2,3"]}
    for name in given:
        assert running[name]["environment"]["JUDGE_GPUS"] == "0,1"
        assert running[name]["environment"]["TRAINER_GPUS"] == "2,3"


def test_every_variable_has_a_default_and_an_explanation() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    explained = dict(re.findall(r"^#([A-Z_]+)=(.*)$", example, re.MULTILINE))
    explained.pop("COMPOSE_PROFILES")  # compose's own
    used: dict[str, set[str]] = {}
    for name, _, default in VARIABLE.findall(TEXT):
        used.setdefault(name, set()).add(default)
    assert sorted(explained) == sorted(used)
    assert {name: default for name, default in explained.items() if default not in used[name]} == {}


@every
def test_what_a_service_names_is_there(name: str) -> None:
    whole, this = compose(), service(name)
    assert this["profiles"]
    assert {*this["profiles"]} <= {*PROFILES}
    for secret in this.get("secrets", []):
        assert secret in whole["secrets"]
    for network in this.get("networks", []):
        assert network in whole["networks"]
    for volume in this.get("volumes", []):
        source, target, *_ = volume.split(":")
        assert target.startswith("/")
        assert (ROOT / source).exists() if source.startswith(".") else source in whole["volumes"]
    if build := this.get("build"):
        dockerfile = (ROOT / build["dockerfile"]).read_text(encoding="utf-8")
        assert "target" not in build or re.search(
            rf"^FROM \S+ AS {build['target']}$", dockerfile, re.MULTILINE
        )
        args = set(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE))
        assert {*build.get("args", {})} <= args
    image = this["image"]
    assert OWN_IMAGE.fullmatch(image) if build else re.fullmatch(r"[a-z0-9./-]+:v?\d+\.\d+[\w.-]*", image)


def test_every_secret_is_one_that_the_script_makes() -> None:
    script = (ROOT / "deploy" / "make_secrets.py").read_text(encoding="utf-8")
    for secret in compose()["secrets"].values():
        assert f'"{Path(secret["file"]).name}"' in script


@every
def test_a_service_is_locked_down(name: str) -> None:
    this = service(name)
    assert this["cap_drop"] == ["ALL"]
    assert this["security_opt"] == ["no-new-privileges:true"]
    assert this["mem_limit"]
    assert this["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert not {"privileged", "cap_add", "ipc", "pid", "container_name", "user"} & this.keys()
    # These images are made to write into their own root, or were never tried without.
    assert this.get("read_only") or name in ("vllm", "dcgm-exporter")
    assert "healthcheck" in this or name in ("tiny-models", "dcgm-exporter")


@pytest.mark.parametrize("file", ["deploy/Dockerfile", "deploy/redis/Dockerfile", "deploy/proxy/Dockerfile"])
def test_no_image_of_ours_runs_as_root(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    last = {"deploy/Dockerfile": ["service", "judge-cpu", "trainer"]}.get(file, [""])
    for target in last:
        stage = text.split(f" AS {target}\n", 1)[1].split("\nFROM ", 1)[0] if target else text
        assert re.findall(r"^USER (\w+)$", stage, re.MULTILINE)[-1:] in (["tether"], ["redis"])


@pytest.mark.parametrize("name", SCALED)
def test_what_scales_holds_nothing_that_there_is_once(name: str) -> None:
    assert not {"ports", "container_name", "hostname"} & service(name).keys()


def test_only_the_proxy_and_the_monitors_are_reached_from_outside() -> None:
    assert sorted(name for name, s in compose()["services"].items() if "ports" in s) == [
        "grafana",
        "prometheus",
        "proxy",
    ]
    assert all(
        port.startswith("127.0.0.1:") for s in compose()["services"].values() for port in s.get("ports", [])
    )


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_both_apis_ask_who_it_is(profile: str) -> None:
    running = services(profile)
    assert running["judge-api"]["environment"]["TETHER_JUDGE_KEYS_FILE"] == "/run/secrets/judge_keys"
    assert running["trainer-api"]["environment"]["TETHER_API_KEY_FILE"] == "/run/secrets/trainer_api_key"
    assert "TETHER_JUDGE_INSECURE" not in TEXT


@pytest.mark.parametrize("name", ["judge-worker", "judge-worker-cpu"])
def test_a_worker_may_finish_before_it_is_killed(name: str) -> None:
    this = service(name)
    grace_s = float(this["environment"]["TETHER_JUDGE_GRACE_S"])
    assert float(this["stop_grace_period"].removesuffix("s")) > grace_s + 5
    assert name == "judge-worker" or "judge-worker" in this["networks"]["services"]["aliases"]


def test_a_runner_may_write_its_checkpoint_before_it_is_killed() -> None:
    from trainer.jobs.runner import RunnerConfig

    grace_s = RunnerConfig.__dataclass_fields__["grace_s"].default
    for name in ("runner", "runner-cpu"):
        assert float(service(name)["stop_grace_period"].removesuffix("s")) > grace_s


def test_redis_writes_before_it_answers_and_forgets_nothing() -> None:
    settings = (ROOT / "deploy" / "redis" / "tether.conf").read_text(encoding="utf-8").splitlines()
    assert {"appendonly yes", "appendfsync always", "maxmemory-policy noeviction"} <= {*settings}
