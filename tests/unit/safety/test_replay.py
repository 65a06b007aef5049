"""A run's log replays to the same betas, whole, resumed or cut short; one that was touched does not."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from shared.safety import Adaptive
from shared.wire import FailureCode
from trainer.foreground.replay import replay as command
from trainer.safety.controller import Controller
from trainer.safety.decision import Action
from trainer.safety.journal import Journal, fingerprint, replay
from trainer.safety.ledger import Arrival, Failed, ItemKey, Scored, SourceName

METHOD = Adaptive.model_validate(
    {
        "sources": [{"type": "target", "look_ahead": 3}, "policy"],
        "staleness": {"max_staleness": 2, "deadline_s": 5, "overdue": "fail_closed"},
    }
)
ROWS = 8


class Log:
    """Lines as the recorder writes them."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def __call__(self, call: dict[str, Any]) -> None:
        self.lines.append(json.dumps(call, separators=(",", ":")).encode() + b"\n")

    def calls(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


def run(
    log: Callable[[dict[str, Any]], None],
    *,
    steps: int = 30,
    seed: int = 0,
    first: int = 0,
    saved: dict[str, Any] | None = None,
) -> dict[int, Any]:
    """A run beside a judge that is late, fails and is away for a while. Returns its checkpoints."""
    rng = random.Random(seed)
    journal = Journal(METHOD, {3: 0.25}, log)
    now = 100.0 * first
    if saved is None:
        for u in range(-3, 0):
            journal.open_reading(u, [(SourceName.TARGET, row) for row in rows(u + 3)], now)
    else:
        journal.restore(json.loads(json.dumps(saved)), t=first, now=now)
    checkpoints = {}
    for t in range(first, steps):
        if not journal.controller.is_open(t):
            items = [(SourceName.TARGET, row) for row in rows(t + 3)]
            journal.open_reading(t, [*items, (SourceName.POLICY, rows(t + 2)[0])], now)
        away = 10 <= t < 16
        while True:
            journal.receive([] if away else arrivals(journal, rng), now)
            if not journal.must_wait(t, now):
                break
            now += 0.3
        assert journal.decide(t, rows(t)).action is Action.TRAIN
        now += 0.5
        if t % 5 == 4:
            checkpoints[t + 1] = journal.checkpoint(t + 1)
    return checkpoints


def rows(step: int) -> list[int]:
    return [(2 * step) % ROWS, (2 * step + 1) % ROWS]


def arrivals(journal: Journal, rng: random.Random) -> list[Arrival]:
    out = [
        ItemKey(u, source, row)
        for u, reading in journal.controller.readings.items()
        for source, row in sorted(reading.outstanding)
        if rng.random() < 0.4
    ]
    rng.shuffle(out)
    failed = Failed(FailureCode.PARSE_ERROR)
    return [Arrival(key, failed if rng.random() < 0.2 else Scored(rng.random())) for key in out]


def test_every_beta_of_a_run_with_an_outage_is_recomputed() -> None:
    log = Log()
    run(log)
    found = replay(log.lines)
    assert found.difference is None
    assert (found.decisions, found.betas, found.last_step) == (30, 60, 29)
    decided = [call for call in log.calls() if call["op"] == "decide"]
    assert any(call["overdue"] for call in decided)
    assert len({beta for call in decided for beta in call["betas"]}) > 10


def test_a_run_that_was_killed_and_resumed_replays() -> None:
    log = Log()
    checkpoints = run(log, steps=23)
    run(log, first=20, saved=checkpoints[20], seed=1)
    found = replay(log.lines)
    assert found.difference is None
    assert (found.resumed_at, found.decisions, found.last_step) == ([20], 33, 29)


def test_a_run_whose_stop_was_lost_and_that_went_on_from_the_save_before_replays() -> None:
    log = Log()
    checkpoints = run(log, steps=20)
    # The stop at step 20 saves once more, with another reading open, and is killed before it is whole.
    lines = log.calls()
    again = {"op": "open", "u": 20, "items": [["target", 1]], "now": lines[-1].get("now", 99.0)}
    log(again)
    replayed = Controller(Adaptive.model_validate(lines[0]["method"]))
    replayed.restore(json.loads(json.dumps(checkpoints[20])), 0.0)
    replayed.open_reading(20, [(SourceName.TARGET, 1)], 0.0)
    log({"op": "checkpoint", "t": 20, "sha256": fingerprint(replayed.to_state())})
    run(log, first=20, saved=checkpoints[20], seed=1)
    found = replay(log.lines)
    assert found.difference is None
    assert found.resumed_at == [20]


def test_a_last_line_that_is_cut_short_is_named_and_one_in_the_middle_is_a_fault() -> None:
    log = Log()
    run(log)
    found = replay([*log.lines[:-2], log.lines[-2][:30]])
    assert found.difference is None
    assert found.torn_line == len(log.lines) - 1
    found = replay([*log.lines[:40], b'{"op":"rec\n', *log.lines[41:]])
    assert found.difference is not None
    assert (found.difference.line, found.difference.what) == (41, "a line that cannot be read")


def test_a_score_that_was_changed_afterwards_is_found_at_the_first_step_it_moves() -> None:
    log = Log()
    run(log)
    calls = log.calls()
    at = next(
        i
        for i, call in enumerate(calls)
        if call["op"] == "receive" and any(isinstance(a[3], float) for a in call["arrivals"])
    )
    for told in calls[at]["arrivals"]:
        told[3] = 0.123
    forged = Log()
    for call in calls:
        forged(call)
    difference = replay(forged.lines).difference
    assert difference is not None
    assert difference.line > at
    assert difference.what in ("betas[0]", "betas[1]", "risk")


def test_a_run_that_resumed_from_a_state_it_never_had_is_found() -> None:
    log = Log()
    checkpoints = run(log, steps=12)
    run(log, first=10, saved={**checkpoints[10], "ema": 0.0}, seed=1)
    difference = replay(log.lines).difference
    assert difference is not None
    assert (difference.step, difference.what) == (10, "the state that was resumed")


@pytest.fixture
def invoke(tmp_path: Path) -> Callable[..., Any]:
    app = typer.Typer()
    app.command()(command)
    return lambda *args: CliRunner().invoke(app, [str(tmp_path), *args])


def test_the_command_says_what_it_found(invoke: Callable[..., Any], tmp_path: Path) -> None:
    log = Log()
    run(log)
    path = tmp_path / "controller.jsonl"
    path.write_bytes(b"".join(log.lines))
    told = invoke()
    assert (told.exit_code, told.stdout) == (0, "30 steps, 60 betas: equal, bit for bit\n")
    assert json.loads(invoke("--json").stdout)["ok"] is True

    path.write_bytes(b"".join(log.lines).replace(b'"staleness":2', b'"staleness":1', 1))
    told = invoke()
    assert told.exit_code == 1
    assert "staleness is 1 in the log and 2 by the rules" in told.stdout
    assert json.loads(invoke("--json").stdout)["difference"]["what"] == "staleness"


def test_a_run_without_a_log_is_told(invoke: Callable[..., Any], tmp_path: Path) -> None:
    assert "there is no log" in str(invoke().exception)
    (tmp_path / "controller.jsonl").touch()
    assert "is empty: only runs of the method `adaptive`" in str(invoke().exception)
