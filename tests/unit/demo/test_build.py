"""The cached world: built once, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.demo import build
from trainer.demo.pretrain import Schedule, Settings, Shape

SMALL = Settings(
    base=Shape(hidden=16, layers=1, heads=2, intermediate=32),
    base_schedule=Schedule(steps=1, batch_size=2, learning_rate=1e-3),
    judge=Shape(hidden=16, layers=1, heads=2, intermediate=32),
    judge_schedule=Schedule(steps=1, batch_size=2, learning_rate=1e-3),
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path))
    return tmp_path


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TETHER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.cache_folder() == tmp_path / "tether"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert build.cache_folder() == Path.home() / ".cache" / "tether"


def test_the_name_changes_with_the_settings() -> None:
    assert build.world_name(Settings(seed=1)) != build.world_name(Settings(seed=2))
    assert build.world_name(Settings()) == build.world_name(Settings())


def test_interrupted_it_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path, *args: object) -> None:
        (folder / "base").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.ensure_world(progress=False, settings=SMALL)
    assert [path for path in cache.iterdir() if path.is_dir()] == []
