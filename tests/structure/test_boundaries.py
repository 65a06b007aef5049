"""Who may import whom. Read from the source, so that an import inside a function counts too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("shared", "judge_service", "trainer")


def sources(package: str) -> Iterator[Path]:
    yield from sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of all that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(
    ("package", "barred"),
    [
        ("shared", {"trainer", "judge_service", "torch", "vllm", "deepspeed"}),
        ("judge_service", {"trainer", "vllm", "deepspeed"}),
        ("trainer", {"judge_service", "vllm"}),
    ],
)
def test_a_package_keeps_to_its_side(package: str, barred: set[str]) -> None:
    found = {str(path.relative_to(ROOT)): imported(path) & barred for path in sources(package)}
    assert {path: names for path, names in found.items() if names} == {}


def test_the_rules_do_not_know_the_training_that_uses_them() -> None:
    found = {}
    for path in sources("trainer/safety"):
        text = path.read_text(encoding="utf-8")
        names = {name for name in ("trainer.training", "torch", "deepspeed") if f"import {name}" in text}
        names |= {name for name in ("trainer.training", "torch") if f"from {name}" in text}
        if names:
            found[path.name] = names
    assert found == {}


def test_one_file_imports_deepspeed() -> None:
    found = [
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in sources(package)
        if "deepspeed" in imported(path)
    ]
    assert found == ["trainer/training/engine.py"]


def test_init_files_are_empty() -> None:
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("__init__.py")]
    assert len(found) > 10
    assert [path for path in found if path.stat().st_size] == []


@pytest.mark.parametrize(
    "module",
    ["shared.wire", "shared.jobs", "trainer.safety.controller", "trainer.foreground.replay", "trainer.cli",
     "trainer.jobs.runner", "judge_service.queue.streams", "judge_service.api.app"],
)  # fmt: skip
def test_light_modules_stay_light(module: str) -> None:
    """In a fresh process: the wire types, the rules and the services must not pull torch in."""
    heavy = "{'torch', 'vllm', 'deepspeed', 'transformers'} & sys.modules.keys()"
    code = f"import sys, {module}; sys.exit(str({heavy}) if {heavy} else 0)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_catches_everything() -> None:
    """`except:` and `except Exception` hide a failure as something else."""
    found = []
    for package in PACKAGES:
        for path in sources(package):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                bare = isinstance(node, ast.ExceptHandler) and (
                    node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "Exception")
                )
                if bare:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []
