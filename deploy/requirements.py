"""Print what extras of pyproject.toml require, flattened: `python requirements.py EXTRA...`.

Lets an image install dependencies in a layer that a change of the code does not touch. Standard library only.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

OWN = re.compile(r"tether\[([^\]]+)\]")


def requirements(project: Mapping[str, object], extras: Iterable[str]) -> list[str]:
    """The project's own requirements and those of its extras. Raises KeyError for an unknown extra."""
    optional = project["optional-dependencies"]
    assert isinstance(optional, Mapping)
    found = list(_listed(project["dependencies"]))
    for extra in extras:
        for requirement in _listed(optional[extra]):
            own = OWN.fullmatch(requirement)
            found += requirements(project, own[1].split(",")) if own else [requirement]
    return sorted(set(found))


def _listed(value: object) -> Sequence[str]:
    assert isinstance(value, list)
    return value


if __name__ == "__main__":
    pyproject = Path(__file__).resolve().parent.parent / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    print("\n".join(requirements(project, sys.argv[1:])))
