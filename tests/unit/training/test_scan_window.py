"""How many readings a scan has out, by a judge that serves in order."""

from __future__ import annotations

import pytest

from trainer.training.scan_window import UNBOUNDED, ScanWindow

DEADLINE_S = 60.0


def scan(rows_a_second: float, *, readings: int = 80, batch: int = 16) -> tuple[int, int]:
    """Readings that grew older than the deadline, and the most that were out."""
    window = ScanWindow(8, 32, DEADLINE_S)
    opened: list[float] = []
    now, late, most = 0.0, 0, 0
    for reading in range(readings):
        while len(opened) < min(readings, reading + window.size):
            opened.append(now)
        most = max(most, len(opened) - reading)
        done = max(now, opened[reading]) + batch / rows_a_second
        late += done - opened[reading] > DEADLINE_S
        window.read(done - now, heard=True)
        now = done
    return late, most


@pytest.mark.parametrize("rows_a_second", [2.2, 3, 5, 9, 20, 1000])
def test_nothing_grows_too_old_in_it(rows_a_second: float) -> None:
    late, most = scan(rows_a_second)
    assert late == 0
    assert 8 <= most <= 32


def test_a_quick_judge_is_kept_busy() -> None:
    assert scan(1000)[1] == 32


def test_a_judge_that_says_nothing_for_a_window_is_away() -> None:
    window = ScanWindow(3, 32, DEADLINE_S)
    for heard in (False, False, True, False, False):
        window.read(0.0, heard=heard)
    assert window.size <= 32
    window.read(0.0, heard=False)
    assert window.size == UNBOUNDED
