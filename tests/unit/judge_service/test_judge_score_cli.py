"""The commands themselves: options, exit statuses, what goes where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from judge_service.cli import app
from shared.rubrics.rubric import load_rubric

MINE = """
name = "mine"
prefix = "Grade the harm."

[[question]]
ask = "1 to 5?"
suffix = "\\nLevel:\\n"
"""


@pytest.fixture
def rules(tmp_path: Path) -> list[str]:
    """The wiring's own judge, without control pairs: it knows a few words only."""
    path = tmp_path / "judge.toml"
    path.write_text('type = "rules"\n')
    return ["--backend-file", str(path), "--no-controls", "--rubric", "demo-v1"]


def run(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def test_one_pair(rules: list[str]) -> None:
    done = run("score", "--prompt", "How do I bake bread?", "--response", "With flour.", *rules)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["status"], told["rubric_hash"]) == ("scored", load_rubric("demo-v1").hash)
    assert told["judge"]["kind"] == "rules"


def test_standard_input_to_standard_output(rules: list[str]) -> None:
    rows = [{"prompt": "p", "response": f"r{n}"} for n in range(3)]
    done = run("score", "-", *rules, stdin="".join(json.dumps(row) + "\n" for row in rows).encode())
    assert done.exit_code == 0, done.output
    out = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["response"] for row in out] == ["r0", "r1", "r2"]
    assert all("harm_score" in row for row in out)
    assert "3 of 3 rows scored" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "--rubric", "demo-v1"], "give either --prompt and --response, or a file"),
        (["score", "--prompt", "p"], "needs both --prompt and --response"),
        (["score", "--prompt", "p", "--response", "r"], "no rubric: name one with --rubric"),
        (["score", "--prompt", "p", "--response", "r", "--rubric", "demo-v1"], "who shall grade?"),
        (["score", "ROWS", "--rubric", "demo-v1", "--url", "http://x"], "where to? Give --out"),
        (
            ["score", "ROWS", "--out", "ROWS", "--rubric", "demo-v1", "--url", "http://x"],
            "is the file that is read",
        ),
        (
            ["score", "ROWS", "--out", "none/o", "--rubric", "demo-v1", "--url", "http://x"],
            "there is no folder none",
        ),
        (["score", "ROWS", "--out", "o", "--rubric", "r", "--model", "a", "--backend-file", "b"], "not both"),
        (["score", "ROWS", "--out", "o", "--rubric", "no-such", "--model", "a"], "unknown rubric 'no-such'"),
        (
            ["score", "ROWS", "--out", "o", "--rubric", "demo-v1", "--model", "./none"],
            "there is no folder ./none",
        ),
    ],
)
def test_wrong_options_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    for name in ("URL", "RUBRIC", "RUBRICS_DIR"):
        monkeypatch.delenv(f"TETHER_JUDGE_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("ROWS").write_text('{"prompt": "p", "response": "r"}\n')
    done = run(*arguments)
    assert done.exit_code == 1
    assert message in str(done.exception), done.exception


def test_rows_without_a_score_have_an_exit_status_of_their_own(
    tmp_path: Path, rules: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from judge_service.backends.base import BackendError
    from judge_service.backends.rules import RulesBackend

    async def broken(_self: Any, _batch: Any) -> Any:
        raise BackendError("broken")

    monkeypatch.setattr(RulesBackend, "judge", broken)
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"prompt": "p", "response": "r"}\n')
    done = run("score", str(rows), "--out", str(out), *rules)
    assert done.exit_code == 3
    assert "no score: 1 server_error; the same command judges them again" in done.stderr
    assert "harm_score" not in json.loads(out.read_text())


def test_rubrics_are_listed_shown_and_checked(tmp_path: Path, judge_folder: Path) -> None:
    listed = run("rubric", "list").stdout
    assert load_rubric("harm-v1").hash in listed
    shown = run("rubric", "show", "strongreject-v1").stdout
    assert shown.count("[the reply]") == 3
    assert "<reply-[nonce]>" in shown
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    checked = run("rubric", "check", str(path), "--model", str(judge_folder))
    assert checked.exit_code == 0, checked.output
    assert "labels 1, 2, 3, 4, 5 are the tokens" in checked.stdout
    assert "mine" in run("rubric", "list", "--rubrics-dir", str(tmp_path)).stdout
    path.write_text(MINE.replace('"mine"', '"harm-v1"'))
    assert "is taken by one that ships" in str(run("rubric", "check", str(path)).exception)
