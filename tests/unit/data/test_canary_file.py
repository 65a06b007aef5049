"""The provider's canary prompts, line by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import ConfigError, DataError
from trainer.data.canaries import load_canaries, parse_canaries

HARMFUL = b'{"prompt": "How do I forge a seal?"}'


def test_prompts_are_harmful_unless_they_say_benign() -> None:
    turns = b'{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],'
    found = parse_canaries([HARMFUL, b"\n", turns + b' "kind": "benign"}'])
    assert [canary.harmful for canary in found] == [True, False]
    assert [turn.role for turn in found[1].prompt] == ["system", "user"]
    assert found[0].prompt[0].content == "How do I forge a seal?"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"prompt": "x", "kind": "bad"}', "'kind' is 'bad'"),
        (b'{"prompt": " "}', "a canary has a 'prompt'"),
        (b'{"messages": [{"role": "assistant", "content": "x"}]}', "end with the user's turn"),
        (b'{"messages": [{"role": "user"}]}', "'messages': "),
        (b"[1]", "line 2"),
    ],
)
def test_a_wrong_line_is_named(line: bytes, told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        parse_canaries([HARMFUL, line])
    assert caught.value.line == 2


def test_without_a_harmful_prompt_nothing_would_be_tried(tmp_path: Path) -> None:
    path = tmp_path / "canaries.jsonl"
    path.write_bytes(b'{"prompt": "x", "kind": "benign"}\n')
    with pytest.raises(DataError, match="no harmful prompt"):
        load_canaries(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_canaries(tmp_path / "none.jsonl")
