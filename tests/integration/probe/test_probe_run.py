"""Fit, save, load and try on a tiny model: the whole way, and what is refused on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from shared.errors import ConfigError, DataError, ModelError
from shared.wire import ChatMessage
from trainer.probe import feature_file
from trainer.probe.cli import app
from trainer.probe.evaluate import NAMES, Outcome
from trainer.probe.features import POOLINGS
from trainer.probe.reader import PromptReader, open_reader
from trainer.probe.rows import read_labelled
from trainer.probe.run import eval_probe, fit_probe, open_probe
from trainer.probe.splits import Skipped, Split, plan_splits
from trainer.probe.store import CARD, load_probe

Rows = Callable[..., list[dict[str, object]]]
Save = Callable[..., Path]


def said(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


@pytest.fixture(scope="module")
def reader(tiny_model: Path) -> PromptReader:
    return open_reader(tiny_model)


@pytest.fixture(scope="module")
def train_file(tmp_path_factory: pytest.TempPathFactory, save_rows: Save, labelled_rows: Rows) -> Path:
    rows = labelled_rows(60, 1, category="c1") + labelled_rows(60, 2, category="c2")
    return save_rows(tmp_path_factory.mktemp("rows") / "train.jsonl", rows)


@pytest.fixture(scope="module")
def probe_folder(tiny_model: Path, train_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    fit_probe(tiny_model, [train_file], folder, folds=3)
    return folder


# --- reading ------------------------------------------------------------------------------------


def test_a_prompt_reads_the_same_in_any_batch(reader: PromptReader) -> None:
    prompts = [reader.encode(said(text)) for text in ("w1", "w2 w3 w4 w5", "w9 w8")]
    together = reader.features_of(prompts, POOLINGS)
    alone = torch.cat([reader.features_of([prompt], POOLINGS) for prompt in prompts], dim=1)
    torch.testing.assert_close(together, alone)


def test_features_lie_in_the_order_of_the_rows(
    reader: PromptReader, train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_file, "BATCH_TOKENS", 40)
    monkeypatch.setattr(feature_file, "CHUNK", 32)
    rows = list(read_labelled([train_file]))
    features = feature_file.extract(reader, iter(rows), len(rows), tmp_path / "f")
    for at in (0, 37, len(rows) - 1):
        want = reader.features([reader.encode(rows[at].messages)], "mean")[0]
        got = np.stack([features.matrix("mean", layer)[at] for layer in range(features.layers)])
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)


def test_rows_are_read_as_they_are_needed(
    reader: PromptReader, train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, no more than a chunk of them is held."""
    monkeypatch.setattr(feature_file, "CHUNK", 8)
    rows, pulled, gaps = list(read_labelled([train_file])), 0, []

    def counted() -> Any:
        nonlocal pulled
        for row in rows:
            pulled += 1
            yield row

    feature_file.extract(
        reader, counted(), len(rows), tmp_path / "f", lambda done: gaps.append(pulled - done)
    )
    assert len(gaps) == len(rows) // 8
    assert max(gaps) == 0


def test_prompts_that_cannot_be_read(reader: PromptReader, tmp_path: Path, save_rows: Save) -> None:
    with pytest.raises(DataError, match="the prompt is empty"):
        reader.encode(said("   "))
    with pytest.raises(DataError, match=r"8\d tokens, more than the model's context of 64; it was not"):
        reader.encode(said("w1 " * 80))
    path = save_rows(
        tmp_path / "long.jsonl", [{"prompt": "w1", "label": 1}, {"prompt": "w1 " * 80, "label": 0}]
    )
    with pytest.raises(DataError, match=r"line 2: the prompt has 8\d tokens"):
        feature_file.extract(reader, read_labelled([path]), 2, tmp_path / "f")


def test_states_that_are_no_numbers_name_their_lines(
    reader: PromptReader, train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = reader.body.layers[1].mlp.down_proj.weight
    monkeypatch.setattr(weight, "data", torch.full_like(weight, float("nan")))
    with pytest.raises(ModelError, match=r"at layer 2 is not finite .* \(lines \d+, "):
        feature_file.extract(reader, read_labelled([train_file]), 20, tmp_path / "f")


# --- the probe and its model ----------------------------------------------------------------------


def test_what_is_saved_is_what_was_fitted(probe_folder: Path, tiny_model: Path, reader: PromptReader) -> None:
    probe = open_probe(probe_folder, tiny_model, reader)
    assert probe.card.heads[probe.card.head].auroc > 0.9
    assert len(probe.heads) == 2 * (reader.layers + 1)
    harmful, harmless = (
        probe.calibration.probability(probe.head.logits(_features(reader, probe.head, text)))[0]
        for text in ("w21 w24 w28 w25", "w1 w4 w8 w5")
    )
    assert harmful > 0.7 > 0.3 > harmless


def _features(reader: PromptReader, head: Any, text: str) -> Any:
    return reader.features([reader.encode(said(text))], head.pooling, head.layers).numpy()


def test_it_does_not_load_beside_another_model(
    probe_folder: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match=r"this probe was fitted on another model .* tether probe fit"):
        open_probe(probe_folder, other, open_reader(other))


def test_nor_beside_its_own_model_trained_on(probe_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """It belongs to the frozen reference: a policy is another model after one small step."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 1e-4 * torch.randn_like(weight)
    model.save_pretrained(tmp_path)
    for file in tiny_model.glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_bytes((tiny_model / "chat_template.jinja").read_bytes())
    with pytest.raises(ModelError, match="fitted on another model"):
        open_probe(probe_folder, tmp_path, open_reader(tmp_path))


def test_nor_beside_another_chat_template(
    probe_folder: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other", template="{% for m in messages %}{{ m['content'] }} {% endfor %}")
    with pytest.raises(ModelError, match="another chat template or vocabulary"):
        open_probe(probe_folder, other, open_reader(other))


def test_the_same_weights_elsewhere_are_the_same_model(
    tiny_model: Path, make_model: Any, tmp_path: Path
) -> None:
    assert open_reader(make_model(tmp_path / "again")).fingerprint == open_reader(tiny_model).fingerprint


def test_a_folder_without_a_whole_probe(probe_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no probe \(.*probe.json is missing\)"):
        load_probe(tmp_path)
    card = json.loads((probe_folder / CARD).read_text())
    (tmp_path / CARD).write_text(json.dumps({**card, "thresholds": []}))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_probe(tmp_path)


# --- trying ---------------------------------------------------------------------------------------


def test_splits_hold_out_what_they_say() -> None:
    harmful_N = np.arange(200) % 2 == 1
    categories = ["a" if row < 100 else "b" if row < 190 else None for row in range(200)]
    plans = plan_splits(harmful_N, np.arange(200), categories, ["x"] * 200)
    assert [plan.name for plan in plans] == ["in distribution", "category a", "category b"]
    for plan in plans:
        assert isinstance(plan, Split)
        assert not set(plan.train) & set(plan.test)
    held_out = plans[1]
    assert isinstance(held_out, Split)
    assert set(held_out.test) == set(range(100))


def test_a_group_of_one_class_borrows_the_other() -> None:
    harmful_N = np.arange(200) >= 100
    datasets = ["benign"] * 100 + ["bad-1"] * 50 + ["bad-2"] * 50
    plans = {plan.name: plan for plan in plan_splits(harmful_N, np.arange(200), [None] * 200, datasets)}
    one = plans["data set bad-1"]
    assert isinstance(one, Split)
    assert set(range(100, 150)) <= set(one.test)
    borrowed = [row for row in one.test if row < 100]
    assert 10 <= len(borrowed) <= 30
    assert not set(borrowed) & set(one.train)
    assert isinstance(plans["data set benign"], Skipped)


def test_a_prompt_on_both_sides_is_not_learned_from() -> None:
    keys_N = np.arange(200) % 50
    plans = plan_splits(np.arange(200) % 2 == 1, keys_N, [None] * 200, ["x"] * 200)
    assert isinstance(plans[0], Split)
    assert not set(keys_N[plans[0].train]) & set(keys_N[plans[0].test])


def test_test_rows_choose_nothing(
    tiny_model: Path, probe_folder: Path, tmp_path: Path, save_rows: Save, labelled_rows: Rows
) -> None:
    rows = labelled_rows(40, 7)
    upside_down = [{**row, "label": not row["label"]} for row in rows]
    tests = [save_rows(tmp_path / "right.jsonl", rows), save_rows(tmp_path / "wrong.jsonl", upside_down)]
    right, wrong = eval_probe(tiny_model, probe_folder, [], tests, resamples=20)
    assert isinstance(right, Outcome)
    assert isinstance(wrong, Outcome)
    assert right.head == wrong.head == load_probe(probe_folder).card.head
    assert right.rankings["probe"].auroc.value == pytest.approx(1 - wrong.rankings["probe"].auroc.value)
    assert set(right.rankings) == {"probe"}  # controls have nothing to learn from


def test_rows_it_was_fitted_on_are_left_out(
    tiny_model: Path,
    probe_folder: Path,
    train_file: Path,
    tmp_path: Path,
    save_rows: Save,
    labelled_rows: Rows,
) -> None:
    (skipped,) = eval_probe(tiny_model, probe_folder, [], [train_file])
    assert isinstance(skipped, Skipped)
    assert "0 harmful and 0 harmless rows that the probe was not fitted on (120 were)" in skipped.reason


def test_train_must_be_what_it_was_fitted_on(
    tiny_model: Path, probe_folder: Path, tmp_path: Path, save_rows: Save, labelled_rows: Rows
) -> None:
    other = save_rows(tmp_path / "other.jsonl", labelled_rows(40, 9))
    with pytest.raises(ConfigError, match="--train is not what this probe was fitted on"):
        eval_probe(tiny_model, probe_folder, [other], [])
    with pytest.raises(ConfigError, match="give --train, --test, or both"):
        eval_probe(tiny_model, probe_folder, [], [])


def test_the_commands(tiny_model: Path, train_file: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    probe, out = tmp_path / "p", tmp_path / "report"
    done = runner.invoke(
        app, ["fit", str(tiny_model), "--data", str(train_file), "--out", str(probe), "--folds", "2"]
    )
    assert done.exit_code == 0, done.output
    assert "120 examples, 60 harmful" in done.output
    done = runner.invoke(
        app,
        ["eval", str(tiny_model), "--probe", str(probe), "--train", str(train_file), "--folds", "2",
         "--resamples", "20", "--out", str(out), "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads((out / "eval.json").read_text())
    assert json.loads(done.stdout) == found
    names = [outcome["name"] for outcome in found["outcomes"]]
    assert names == ["in distribution", "category c1", "category c2"]
    for outcome in found["outcomes"]:
        assert set(outcome["rankings"]) == set(NAMES)
        assert len(outcome["layers"]) == 8
    assert (out / "layers.svg").read_text().startswith("<?xml")
    assert (out / "reliability.svg").exists()
