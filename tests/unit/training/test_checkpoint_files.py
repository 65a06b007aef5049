"""Which folders there are when a save ends, or does not."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared.errors import TrainingError
from trainer.training import checkpoint
from trainer.training.checkpoint import RunState, latest, load, save


class Engine:
    """Writes one file, or fails as it is told."""

    checkpoint_bytes = 1000

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def save(self, directory: Path) -> None:
        (directory / "engine").mkdir()
        (directory / "engine" / "state.pt").write_bytes(b"x" * 10)
        if self.error is not None:
            raise self.error

    def policy_weights(self) -> dict[str, Any]:
        return {}

    objective = SimpleNamespace(policy=None)


COLLECTIVE: Any = SimpleNamespace(
    world=SimpleNamespace(rank=0, ranks=1), barrier=lambda: None, mean=lambda values: values
)


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "save_model", lambda *_: None)


def saved(
    folder: Path,
    step: int,
    *,
    keep: int = 2,
    parked: bool = False,
    engine: Any = None,
    wanted: Collection[int] = (),
) -> Path:
    return save(
        folder,
        state=RunState(step, 0, 1, parked),
        rank_state={},
        engine=engine or Engine(),
        tokenizer=None,
        collective=COLLECTIVE,
        keep=keep,
        card={},
        wanted=wanted,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_steps_are_kept(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    for step in (5, 10, 1_000_000):
        saved(tmp_path, step)
    assert names(tmp_path) == ["step-000010", "step-1000000"]
    assert latest(tmp_path) == tmp_path / "step-1000000"


def test_a_step_saved_again_never_leaves_the_run_without_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 5, keep=1)
    removed = []
    real = shutil.rmtree

    def rmtree(path: Path, **how: Any) -> None:
        removed.append((path.name, latest(tmp_path)))
        real(path, **how)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", rmtree)
    again = saved(tmp_path, 5, keep=1, parked=True)
    assert removed == [("step-000005", again)], "the older one goes when the newer one is there"
    assert again.name == "step-000005.1"
    assert load(again, rank=0, ranks=1)[0].parked
    assert saved(tmp_path, 5, keep=1).name == "step-000005.2"
    assert names(tmp_path) == ["step-000005.2"]
    saved(tmp_path, 6, keep=1)
    assert names(tmp_path) == ["step-000006"]


def test_what_a_killed_save_left_is_no_checkpoint_and_goes_with_the_next(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, 10, engine=Engine(KeyboardInterrupt()))  # type: ignore[arg-type]
    assert names(tmp_path) == [".partial-step-000010", "step-000005"]
    assert latest(tmp_path) == tmp_path / "step-000005"
    saved(tmp_path, 10)
    assert names(tmp_path) == ["step-000005", "step-000010"]


def test_too_little_room_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 5)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=999))
    with pytest.raises(TrainingError) as caught:
        saved(tmp_path, 10, engine=Engine(AssertionError("it was asked to write")))
    said = str(caught.value)
    assert f"step 10: it takes about 1000 bytes below {tmp_path}, where 999 are free" in said
    assert latest(tmp_path) == tmp_path / "step-000005"


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing")],
)
def test_a_disk_that_fills_up_meanwhile_is_named_and_what_was_written_makes_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    free = iter([5000, 12])
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free)))
    with pytest.raises(TrainingError, match=r"about 1000 bytes below .* where 12 are free"):
        saved(tmp_path, 10, engine=Engine(error))
    assert names(tmp_path) == []


def test_another_failure_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a peer is gone"):
        saved(tmp_path, 10, engine=Engine(RuntimeError("a peer is gone")))


def test_a_step_that_may_still_be_published_is_kept_beside_the_newest(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        saved(tmp_path, step, wanted={5})
    assert names(tmp_path) == ["step-000005", "step-000010", "step-000015"]
    saved(tmp_path, 20, wanted={15})
    assert names(tmp_path) == ["step-000015", "step-000020"]
    assert checkpoint.of_step(tmp_path, 15) == tmp_path / "step-000015"
    assert checkpoint.of_step(tmp_path, 5) is None
