import json

from trainer.jobs.records import Progress
from trainer.jobs.tail import last_lines, read_events
from trainer.training.recorder import drop_half_line

METRICS = {
    "kind": "metrics", "ts": 10.0, "step": 12, "steps": 240, "loss": 0.519, "nll": 0.4, "kl": None,
    "beta": 0.3, "risk": 0.2, "staleness": None, "wait_s": 0.0, "step_s": 1.0, "learning_rate": 0.1,
    "tokens": 7, "eta_s": 5.0, "extra": 1,
}  # fmt: skip
MESSAGE = {"kind": "message", "ts": 1.0, "level": "warn", "message": "cut", "data": {"rows": 2}}
CHECKPOINT = {"kind": "checkpoint", "ts": 2.0, "step": 12, "path": "checkpoints/12", "metrics": {"loss": 0.5}}


def lines(*values):
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def test_events_become_openais(tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_bytes(lines(MESSAGE, METRICS, CHECKPOINT))
    read = read_events(file, 0)
    said, step, saved = read.events
    assert (said.type, said.level, said.message, said.data) == ("message", "warn", "cut", {"rows": 2})
    assert (step.type, step.message) == ("metrics", "Step 12/240: training loss=0.52")
    assert step.data["extra"] == 1
    assert "kind" not in step.data
    assert saved.message == "Checkpoint created at step 12"
    assert read.checkpoints[0].path == "checkpoints/12"
    assert read.progress == Progress(12, 240, 7, 15.0)


def test_a_half_written_line_waits_for_its_end(tmp_path):
    file = tmp_path / "events.jsonl"
    whole, more = lines(MESSAGE), lines(METRICS)
    file.write_bytes(whole + more[:20])
    first = read_events(file, 0)
    assert (len(first.events), first.offset) == (1, len(whole))
    file.write_bytes(whole + more)
    second = read_events(file, first.offset)
    assert (len(second.events), second.offset) == (1, len(whole + more))
    assert read_events(file, second.offset).events == ()


def test_a_line_that_cannot_be_read_is_told_and_not_fatal(tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"{oops\n" + lines(MESSAGE))
    bad, good = read_events(file, 0).events
    assert bad.level == "warn"
    assert bad.data == {"line": "{oops"}
    assert good.message == "cut"


def test_no_file_is_no_events(tmp_path):
    assert read_events(tmp_path / "none", 0).events == ()
    drop_half_line(tmp_path / "none")
    assert last_lines(tmp_path / "none") == ""


def test_what_a_killed_run_left_of_a_line_is_cut(tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_bytes(lines(MESSAGE) + b'{"kind"')
    drop_half_line(file)
    assert file.read_bytes() == lines(MESSAGE)


def test_the_end_of_a_log(tmp_path):
    log = tmp_path / "worker.log"
    log.write_text("".join(f"line {number}\n" for number in range(1000)))
    assert last_lines(log, lines=2) == "line 998\nline 999"
