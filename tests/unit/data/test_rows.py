import json

import pytest

from shared.errors import DataError
from trainer.data.rows import iter_rows, parse_rows


def chat(*turns: tuple[str, object], **extra: object) -> bytes:
    return json.dumps({"messages": [{"role": r, "content": c} for r, c in turns], **extra}).encode()


GOOD = chat(("user", "2+2?"), ("assistant", "4"))


def test_rows_keep_their_line_numbers_and_scores():
    rows = parse_rows(
        [GOOD, b"\n", chat(("system", "s"), ("user", "u"), ("assistant", "a"), harm_score=0.25)]
    )
    assert [(row.line, row.harm_score) for row in rows] == [(1, None), (3, 0.25)]
    assert [message.role for message in rows[1].messages] == ["system", "user", "assistant"]


def test_a_byte_order_mark_is_no_part_of_the_first_row():
    assert parse_rows([b"\xef\xbb\xbf" + GOOD])[0].messages[0].content == "2+2?"


def test_unknown_keys_beside_messages_are_the_owners():
    assert len(parse_rows([chat(("user", "u"), ("assistant", "a"), source="mine", id=3)])) == 1


def test_a_large_file_is_read_lazily():
    def lines():
        yield GOOD
        raise AssertionError("read ahead")

    assert next(iter_rows(lines())).line == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"prompt,answer", r"line 2: not valid JSON .*JSONL"),
        (b'{"messages": [', r"line 2: not valid JSON"),
        (b'{"messages": [], "x": NaN}', r"line 2: not valid JSON \(NaN is not JSON\)"),
        (b"[" * 100_000, r"line 2: the JSON is nested too deeply"),
        (b"[1]", r"line 2: a JSON list where an object"),
        (b'{"prompt": "a"}', r"line 2: 'messages' is missing"),
        (b'{"messages": "hi"}', r"line 2: 'messages' is a JSON string"),
        (b'{"messages": []}', r"line 2: no assistant turn"),
        (chat(("user", "hi")), r"line 2: no assistant turn"),
        (chat(("assistant", "a"), ("user", "b")), r"line 2: the last turn is the user's"),
        (b'{"messages": ["hi"]}', r"line 2: messages\[0\] is a JSON string"),
        (chat(("human", "hi"), ("assistant", "a")), r"line 2: messages\[0\].role is 'human'"),
        (chat(("user", None), ("assistant", "a")), r"line 2: messages\[0\].content is a JSON null"),
        (b'{"messages": [{"role": "user"}]}', r"line 2: messages\[0\].content is missing"),
        (chat(("user", ["a"]), ("assistant", "a")), r"line 2: messages\[0\].content is a JSON list"),
        (chat(("user", "u"), ("assistant", " ")), r"line 2: messages\[1\].content is empty"),
        (chat(("user", "u"), ("system", "s"), ("assistant", "a")), r"line 2: messages\[1\] is a system turn"),
        (chat(("user", "\ud800"), ("assistant", "a")), r"line 2: .* surrogate pair at character 0"),
        (chat(("user", "u"), ("assistant", "a"), harm_score=2), r"line 2: 'harm_score' 2 is not in \[0,1\]"),
        (chat(("user", "u"), ("assistant", "a"), harm_score=True), r"line 2: 'harm_score' is a JSON boolean"),
        (chat(("user", "u"), ("assistant", "a"), tools=[{}]), r"line 2: 'tools' is not offered"),
        (b"\xff\xfe{}", r"line 2: byte 1 is not UTF-8"),
    ],
)
def test_each_fault_names_its_line(line, message):
    with pytest.raises(DataError, match=message) as caught:
        parse_rows([GOOD, line])
    assert caught.value.line == 2


@pytest.mark.parametrize("lines", [[], [b""], [b"\n", b"  \n"]])
def test_a_file_without_a_row_is_empty(lines):
    with pytest.raises(DataError, match="the file is empty"):
        parse_rows(lines)
