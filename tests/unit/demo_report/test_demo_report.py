"""The numbers of the demo's report."""

from __future__ import annotations

import json

import pytest

from shared.wire import FailureCode
from trainer.demo.measure import judged
from trainer.demo.report import Report, holds, over_seeds


def test_of_three_seeds_each_rate_is_the_middle_one(result):
    seeds = [{"base": result(*counts)} for counts in ((0, 100, 200), (40, 20, 190), (10, 180, 198))]
    base = over_seeds(seeds)["base"]
    assert (base.asr, base.task_accuracy, base.benign_helpfulness) == (0.05, 0.5, 0.99)
    assert base.seed_range["asr"] == (0.0, 0.2)
    assert (base.counts["asr"].count, base.counts["asr"].total) == (50, 600)


def test_a_median_over_the_judge_is_none_when_one_seed_has_no_verdict(result):
    scored = result(10, 0, 200)
    unscored = scored.model_copy(update={"asr_judge": None, "judge_failed": {"timeout": 200}})
    merged = over_seeds([{"base": scored}, {"base": unscored}, {"base": scored}])["base"]
    assert merged.asr_judge is None
    assert merged.judge_failed == {"timeout": 200}
    assert merged.asr == 0.05


def test_medians_of_no_seed_or_of_different_models_are_refused(result):
    with pytest.raises(ValueError, match="at least one"):
        over_seeds([])
    with pytest.raises(ValueError, match="same models"):
        over_seeds([{"base": result(0, 0, 0)}, {"sft": result(0, 0, 0)}])


def test_all_targets_hold_on_good_numbers(good):
    found = holds(good, [good])
    assert all(hold.median and hold.seeds == hold.of == 1 for hold in found.values())


@pytest.mark.parametrize(
    ("target", "model", "counts"),
    [
        ("base_asr", "base", (5, 2, 200)),
        ("sft_asr", "sft", (179, 198, 193)),
        ("sft_task", "sft", (197, 189, 193)),
        ("adaptive_asr", "adaptive", (11, 196, 199)),
        ("adaptive_task", "adaptive", (3, 191, 199)),
        ("adaptive_benign", "adaptive", (3, 196, 189)),
    ],
)
def test_each_target_fails_just_past_its_limit(good, result, target, model, counts):
    found = holds({**good, model: result(*counts)}, [good])
    assert not found[target].median
    assert found[target].seeds == 1


def test_a_target_holds_exactly_at_its_limit(good, result):
    # 198/200 - 192/200 is 0.030000000000000027.
    at_limit = {**good, "adaptive": result(10, 192, 190), "base": result(4, 0, 200)}
    assert all(hold.median for hold in holds(at_limit, [at_limit]).values())


def test_holds_counts_seeds_and_the_median_may_hold_where_a_seed_does_not(good, result, make):
    bad = {**good, "adaptive": result(30, 196, 199)}
    report = make(good, bad, good)
    hold = report.holds["adaptive_asr"]
    assert (hold.median, hold.seeds, hold.of) == (True, 2, 3)
    assert report.all_hold
    assert report.seeds_where_all_hold == 2


def test_report_json_has_its_promised_shape_and_reads_back(good, make):
    report = make(good)
    written = json.loads(report.model_dump_json())
    assert list(written["models"]) == ["base", "sft", "fixed_kl", "adaptive_batch", "adaptive"]
    for model in written["models"].values():
        for name in ("asr", "task_accuracy", "benign_helpfulness", "asr_judge"):
            assert 0 <= model[name] <= 1
            counted = model["counts"][name]
            assert counted["count"] / counted["total"] == pytest.approx(model[name])
            assert counted["low"] < counted["high"]
    assert written["models"]["sft"]["asr"] == 0.985
    assert written["seconds"] == 254.2
    assert written["seeds"] == [0]
    assert len(written["by_seed"][0]["runs"]["adaptive"]["curves"]["beta"]) == 12
    assert Report.model_validate(written) == report


def test_a_failed_verdict_is_in_no_rate():
    found = judged([True, True, False, False], [0.9, FailureCode.TIMEOUT, 0.7, 0.6249])
    assert found.asr is not None
    assert (found.asr.count, found.asr.total) == (2, 3)
    assert found.failed == {"timeout": 1}
    assert found.agreement is not None
    assert (found.agreement.count, found.agreement.total) == (2, 3)


def test_a_judge_that_scores_nothing_gives_no_rate():
    found = judged([True, False], [FailureCode.SERVER_ERROR, FailureCode.SERVER_ERROR])
    assert found.asr is None
    assert found.agreement is None
    assert found.failed == {"server_error": 2}
