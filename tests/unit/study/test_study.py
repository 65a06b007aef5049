"""The study's grid, results and report, without a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.safety import Adaptive, PolicySource
from trainer.study.cases import GROUPS, adaptive, cases
from trainer.study.report import summary, write
from trainer.study.results import Rates, Result, read_result


def result(seed: int, *asr: float, status: str = "succeeded") -> Result:
    return Result(
        plan="p",
        seed=seed,
        status=status,
        seconds=1.0,
        along=tuple(Rates(step=10 * (i + 1), asr=a, task=0.9, benign=1.0) for i, a in enumerate(asr)),
        steps=(1, 2),
        beta=(0.1, 0.2 + seed / 10),
        risk=(0.0, 0.0),
        waited_s=0.0,
    )


def test_every_case_is_a_valid_job_with_a_name_of_its_own() -> None:
    found = cases([])
    assert {case.group for case in found} == set(GROUPS)
    assert len({case.key for case in found}) == len(found)


def test_a_case_differs_only_in_what_it_names() -> None:
    changed, default = adaptive(gain_down=0.3), adaptive()
    assert changed.staleness.gain_down == 0.3
    assert changed.model_copy(update={"staleness": default.staleness}) == default
    assert adaptive((PolicySource(),), granularity="batch").granularity == "batch"
    assert isinstance(default, Adaptive)


def test_an_unknown_group_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown group colour; there are: sources"):
        cases(["sources", "colour"])


def test_the_swing_is_of_the_second_half() -> None:
    assert result(0, 1.0, 0.9, 0.1, 0.4).swing == pytest.approx(0.3)
    assert result(0).swing is None


def test_a_run_that_has_no_model_has_no_rates(tmp_path: Path) -> None:
    chosen = cases(["sources"])
    results = {case.key: [result(0, 0.5, 0.2), result(1, status="parked: x")] for case in chosen}
    rows = summary(chosen, results)
    assert rows[0]["asr"] == {"median": 0.2, "low": 0.2, "high": 0.2}
    assert rows[0]["ended"] == ["succeeded", "parked: x"]
    written = write(tmp_path, chosen, results, 2)
    assert [path.name for path in written] == ["study.json", "sources.svg"]
    assert json.loads(written[0].read_text())["cases"] == rows
    nothing = {case.key: [result(0, status="parked: x")] for case in chosen}
    assert summary(chosen, nothing)[0]["asr"] is None
    write(tmp_path, chosen, nothing, 1)


def test_a_result_of_another_plan_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(result(0, 0.1).model_dump_json())
    assert read_result(tmp_path, "p") is not None
    assert read_result(tmp_path, "q") is None
    (tmp_path / "result.json").write_text('{"plan": "p"}')
    assert read_result(tmp_path, "p") is None
