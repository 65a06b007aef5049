"""An operator's own rubrics: a folder of files beside the shipped ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shared.errors import ConfigError
from shared.rubrics.rubric import Rubric, parse_rubric, shipped_rubrics
from shared.rubrics.schema import check_strict, read_file


def all_rubrics(folder: Path | None = None) -> Mapping[str, Rubric]:
    """The shipped ones and every `*.toml` of an operator's folder, by name.

    Raises:
        ConfigError: naming the file and key that is wrong, or two rubrics of one name.
    """
    rubrics = dict(shipped_rubrics())
    if folder is None:
        return rubrics
    if not folder.is_dir():
        raise ConfigError(f"rubrics: there is no folder {folder}")
    for path in sorted(folder.glob("*.toml")):
        rubric = read_rubric_file(path)
        if rubric.name in rubrics:
            taken = "by one that ships with Tether" if rubric.name in shipped_rubrics() else "in this folder"
            raise ConfigError(f"{path}: name: {rubric.name!r} is taken {taken}; choose another name")
        rubrics[rubric.name] = rubric
    return rubrics


def read_rubric_file(path: Path) -> Rubric:
    """An operator's rubric. Raises ConfigError naming the file and key that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    check_strict(read_file(text, str(path)), str(path))
    return parse_rubric(text, source=str(path))
