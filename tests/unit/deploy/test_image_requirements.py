"""What the images install."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMMANDS = [entry.partition(":")[0] for entry in PROJECT["entry-points"]["tether.commands"].values()]
# The `tether` command loads every part of itself, whichever is asked for.
LOADED = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
import trainer.api.main, judge_service.api.server, judge_service.worker.process, judge_service.backends.vllm
ours = {"shared", "judge_service", "trainer"}
print(*(m.__file__ for name, m in sys.modules.items() if name.split(".")[0] in ours and m.__file__))
"""


def test_the_services_import_nothing_that_their_image_lacks() -> None:
    command = [sys.executable, "-P", "-c", LOADED, *COMMANDS]
    files = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True).stdout.split()
    assert len(files) > 50
    imported = {name for file in files for name in imports(Path(file))} - sys.stdlib_module_names
    sources = packages_distributions()
    needed = {canonicalize_name(source) for name in imported for source in sources[name]} - {"tether"}
    assert needed - with_what_they_need(listed("service")) == set()


def imports(file: Path) -> set[str]:
    """Of the module itself: what stands in functions is imported when they are called."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def with_what_they_need(packages: set[str]) -> set[str]:
    """As pip would install them, by the metadata of what is installed here."""
    found: set[str] = set()
    todo = [(package, frozenset[str]()) for package in packages] + [("redis", frozenset({"hiredis"}))]
    seen = set()
    while todo:
        package, extras = todo.pop()
        if (package, extras) in seen:
            continue
        seen.add((package, extras))
        found.add(canonicalize_name(package))
        for text in requires(package) or []:
            need = Requirement(text)
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in ("", *extras)):
                todo.append((need.name, frozenset(need.extras)))
    return found
