"""What the images install."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")


def listed(name: str) -> set[str]:
    """The packages of one of the Dockerfile's lists, as its own line makes it."""
    [extras] = re.findall(rf"requirements\.py ([a-z -]+) > /lists/{name}\.txt", DOCKERFILE)
    command = [sys.executable, str(ROOT / "deploy" / "requirements.py"), *extras.split()]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {re.split(r"[\[<>=~]", line)[0] for line in said.splitlines()}


def test_services_and_the_judge_before_vllm_need_no_torch() -> None:
    assert not listed("service") & {"torch", "transformers", "deepspeed"}
    assert listed("service") >= {"fastapi", "redis", "tokenizers", "python-multipart", "httpx"}


def test_the_others_do() -> None:
    assert "torch" in listed("torch")
    assert listed("trainer") >= {"torch", "transformers", "deepspeed", "peft", "redis"}


@pytest.mark.parametrize("name", ["service", "torch", "trainer"])
def test_every_requirement_is_pinned(name: str) -> None:
    """constraints.txt is what `pip install -c` holds to; a name that it lacks would float."""
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    }
    assert {package.lower().replace("_", "-") for package in listed(name)} <= pinned
