"""The world's making, by real processes, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.demo import build
from trainer.demo.pretrain import Schedule, Settings, Shape
from trainer.evaluation.generate import load_for_generation

SMALL = Settings(
    base=Shape(hidden=16, layers=1, heads=2, intermediate=32),
    base_schedule=Schedule(steps=1, batch_size=2, learning_rate=1e-3),
    judge=Shape(hidden=16, layers=1, heads=2, intermediate=32),
    judge_schedule=Schedule(steps=1, batch_size=2, learning_rate=1e-3),
)


@pytest.mark.integration
def test_built_once_and_loadable_and_what_a_killed_builder_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path))
    abandoned = tmp_path / f".{build.world_name(SMALL)}-dead"
    abandoned.mkdir()
    paths = build.ensure_world(progress=False, settings=SMALL)
    assert not abandoned.exists()
    for folder in (paths.base, paths.judge):
        model, tokenizer = load_for_generation(folder)
        assert model.config.eos_token_id == tokenizer.eos_token_id
        assert tokenizer.chat_template
        assert (folder / "model.safetensors").is_file()

    def never(*args: object) -> None:
        raise AssertionError("built twice")

    monkeypatch.setattr(build, "build", never)
    assert build.ensure_world(progress=False, settings=SMALL) == paths
