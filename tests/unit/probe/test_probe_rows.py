"""How labels are spelled, and what is said of lines that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.errors import ConfigError, DataError
from trainer.probe.rows import Labelled, data_hash, iter_labelled, read_labelled


def parsed(*rows: object, label: str | None = None) -> list[Labelled]:
    return list(iter_labelled([json.dumps(row).encode() for row in rows], dataset="d", label=label))


@pytest.mark.parametrize(
    ("columns", "harmful"),
    [
        ({"label": True}, True),
        ({"label": 0}, False),
        ({"harmful": 1}, True),
        ({"harm_score": 0.5}, True),
        ({"harm_score": 0.49}, False),
        ({"label": False, "harm_score": 0.9}, False),
    ],
)
def test_a_label_is_found(columns: dict[str, object], harmful: bool) -> None:
    assert parsed({"prompt": "hello", **columns})[0].harmful is harmful


def test_another_key_can_be_named() -> None:
    assert parsed({"prompt": "a", "label": False, "bad": True}, label="bad")[0].harmful is True


def test_a_training_row_loses_its_answer() -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    with_answer = parsed({"messages": [*turns, {"role": "assistant", "content": "x"}], "label": True})[0]
    assert with_answer.text == "s\nu"
    assert with_answer.key == parsed({"messages": turns, "label": False})[0].key


def test_data_sets_and_categories() -> None:
    first, second = parsed(
        {"prompt": "a", "label": 1, "dataset": "x", "category": "c"}, {"prompt": "b", "label": 0}
    )
    assert (first.dataset, first.category) == ("x", "c")
    assert (second.dataset, second.category) == ("d", None)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a"}, "line 2: no label: label, harmful or harm_score is due"),
        ({"prompt": "a", "label": "yes"}, "line 2: 'label' is 'yes'; true, false, 1 .* or 0 is due"),
        ({"prompt": "a", "harm_score": 3}, r"line 2: 'harm_score' is 3; a number in \[0,1\] is due"),
        ({"label": 1}, "line 2: 'prompt' is missing"),
        ({"prompt": 5, "label": 1}, "line 2: 'prompt' is a JSON number"),
        ({"prompt": "  \n", "label": 1}, "line 2: the prompt is empty"),
        ({"messages": [], "label": 1}, "line 2: the prompt does not end with a user's turn"),
        ({"messages": [{"role": "tool", "content": "x"}], "label": 1}, r"line 2: messages\[0\] is no turn"),
        ({"prompt": "a", "label": 1, "category": 3}, "line 2: 'category' is a JSON number"),
        ([1], "line 2: a JSON list where an object is due"),
    ],
)
def test_a_wrong_line_is_named(row: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parsed({"prompt": "fine", "label": True}, row)


def test_the_file_is_named_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n")
    with pytest.raises(DataError, match=r"rows\.jsonl: the file is empty"):
        list(read_labelled([path]))
    with pytest.raises(ConfigError, match=r"none\.jsonl cannot be read: No such file"):
        list(read_labelled([tmp_path / "none.jsonl"]))


def test_the_hash_knows_prompts_labels_and_order() -> None:
    a, b = {"prompt": "a", "label": True}, {"prompt": "b", "label": False}
    hashes = [
        data_hash(parsed(*rows)) for rows in ([a, b], [b, a], [a, {**b, "label": True}], [a, {**b, "n": 1}])
    ]
    assert len(set(hashes)) == 3
    assert hashes[0] == hashes[3]
