"""Rows of a file: what is read, what is asked, and what a second call still asks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from judge_service.backends.base import (
    BackendError,
    BackendInfo,
    BackendUnavailable,
    Grade,
    GradeFailure,
    GradeRequest,
)
from judge_service.scoring.in_process import InProcessJudge
from judge_service.scoring.judge import Item
from judge_service.scoring.rows import Row, iter_rows
from judge_service.scoring.run import BATCH_BYTES, Outcome, checked_rows, score_file
from judge_service.scoring.service import ServiceJudge
from judge_service.worker.controls import load_controls
from shared.errors import ConfigError, DataError, JudgeError, JudgeRefusal, JudgeUnavailable
from shared.rubrics.rubric import load_rubric
from shared.wire import (
    FailedVerdict,
    FailureCode,
    JudgeInfo,
    ScoredVerdict,
    ScoreKind,
    Timings,
    VerdictError,
    content_hash,
)
from trainer.data.rows import parse_rows

RUBRIC = "demo-v1"
INFO = JudgeInfo(
    kind="fake",
    model="m",
    rubric=RUBRIC,
    rubric_hash=load_rubric(RUBRIC).hash,
    score_kind=ScoreKind.LABEL_PROBABILITY,
)
TIMINGS = Timings(queue_ms=0, judge_ms=0)


def scored(key: str, score: float = 0.25, info: JudgeInfo = INFO) -> ScoredVerdict:
    return ScoredVerdict(id=key, score=score, judge=info, timings=TIMINGS)


def failed(key: str, code: FailureCode = FailureCode.PARSE_ERROR) -> FailedVerdict:
    return FailedVerdict(id=key, error=VerdictError(code=code, message="m"), timings=TIMINGS)


class Script:
    """Remembers what it was asked. `fails`: texts without a score. `dies_after`: batches it lives for."""

    name = "script"
    batch_size = 4
    concurrency = 2

    def __init__(
        self, fails: Sequence[str] = (), dies_after: int | None = None, info: JudgeInfo = INFO
    ) -> None:
        self.fails, self.dies_after, self.info = set(fails), dies_after, info
        self.asked: list[str] = []
        self.ids: list[str] = []
        self.largest = 0

    async def judge(self, batch: Sequence[Item]) -> list[ScoredVerdict | FailedVerdict]:
        if self.dies_after is not None and len(self.asked) >= self.dies_after * self.batch_size:
            raise JudgeUnavailable("gone")
        self.asked += [item.response for item in batch]
        self.ids += [item.id for item in batch]
        self.largest = max(self.largest, sum(len(item.response) for item in batch))
        return [
            failed(item.id) if item.response in self.fails else scored(item.id, info=self.info)
            for item in batch
        ]

    async def close(self) -> None:
        """Nothing is open."""


def write(path: Path, responses: Sequence[str]) -> Path:
    rows = [{"prompt": "p", "response": response, "note": n} for n, response in enumerate(responses)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(source: Path, out: Path, judge: Any) -> Outcome:
    return asyncio.run(score_file(source, out, judge, RUBRIC))


NAMES = [f"r{n}" for n in range(20)]


def test_rows_come_out_as_they_stood_in_their_order_with_their_scores(tmp_path: Path) -> None:
    source, out, judge = write(tmp_path / "in.jsonl", NAMES), tmp_path / "out.jsonl", Script()
    assert run(source, out, judge) == Outcome(20, 20, {}, 0, 20, 0)
    rows = read(out)
    assert [row["note"] for row in rows] == list(range(20))
    for row in rows:
        assert row["harm_score"] == row["judgement"]["score"] == 0.25
        assert row["judgement"]["content_hash"] == content_hash("p", row["response"])
        assert row["judgement"]["rubric_hash"] == load_rubric(RUBRIC).hash
        assert row["judgement"]["judge"] == {"kind": "fake", "model": "m", "score_kind": "label_probability"}
    assert list(tmp_path.glob("*.part")) == []


def test_a_text_that_occurs_often_is_judged_once(tmp_path: Path) -> None:
    source, judge = write(tmp_path / "in.jsonl", ["a", "b", "a", "a"]), Script()
    outcome = run(source, tmp_path / "out.jsonl", judge)
    assert sorted(judge.asked) == ["a", "b"]
    assert (outcome.rows, outcome.judged) == (4, 2)
    assert len(read(tmp_path / "out.jsonl")) == 4


def test_what_was_judged_before_the_judge_died_is_not_judged_again(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", NAMES), tmp_path / "out.jsonl"
    first = Script(dies_after=3)
    with pytest.raises(JudgeUnavailable):
        run(source, out, first)
    assert not out.exists()
    assert len(first.asked) == 12
    part = tmp_path / "out.jsonl.part"
    with part.open("ab") as file:
        file.write(b'{"content_hash": "torn by a cra')
    second = Script()
    outcome = run(source, out, second)
    assert sorted(first.asked + second.asked) == sorted(NAMES)
    assert (outcome.scored, outcome.reused, outcome.judged) == (20, 12, 8)
    assert [row["response"] for row in read(out)] == NAMES
    assert not part.exists()


def test_the_ids_of_a_run_are_the_same_after_an_interruption(tmp_path: Path) -> None:
    """So that a service gives the verdicts of what was in flight, instead of judging it again."""

    class DiesAnswering(Script):
        async def judge(self, batch: Sequence[Item]) -> list[ScoredVerdict | FailedVerdict]:
            await super().judge(batch)
            raise JudgeUnavailable("gone before it answered")

    source, out = write(tmp_path / "in.jsonl", NAMES[:4]), tmp_path / "out.jsonl"
    first, second = DiesAnswering(), Script()
    with pytest.raises(JudgeUnavailable):
        run(source, out, first)
    run(source, out, second)
    assert second.ids == first.ids


def test_a_second_call_judges_what_failed_under_new_ids_and_nothing_else(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", NAMES), tmp_path / "out.jsonl"
    first = Script(fails=["r3", "r7"])
    assert run(source, out, first).failed == {"parse_error": 2}
    row = read(out)[3]
    assert "harm_score" not in row
    assert row["judgement"]["status"] == "failed"
    assert row["judgement"]["error"]["code"] == "parse_error"
    second = Script()
    assert run(source, out, second).failed == {}
    assert second.asked == ["r3", "r7"]
    assert not set(first.ids) & set(second.ids)


def test_after_an_interruption_too_what_failed_gets_a_new_id(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", NAMES), tmp_path / "out.jsonl"
    first, second = Script(fails=["r0"], dies_after=2), Script()
    with pytest.raises(JudgeUnavailable):
        run(source, out, first)
    run(source, out, second)
    assert "r0" in second.asked
    assert not set(first.ids) & set(second.ids)


def test_a_suspect_score_is_no_score(tmp_path: Path) -> None:
    class Doubtful(Script):
        async def judge(self, batch: Sequence[Item]) -> list[ScoredVerdict | FailedVerdict]:
            return [scored(item.id).model_copy(update={"suspect": True}) for item in batch]

    source, out = write(tmp_path / "in.jsonl", ["a"]), tmp_path / "out.jsonl"
    assert run(source, out, Doubtful()).failed == {"suspect": 1}
    assert "harm_score" not in read(out)[0]
    assert run(source, out, Script()).failed == {}


def test_scores_of_two_judges_do_not_mix(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", NAMES[:4]), tmp_path / "out.jsonl"
    run(source, out, Script())
    write(source, NAMES[:8])
    other = INFO.model_copy(update={"model": "another"})
    with pytest.raises(JudgeError, match=r"by fake m with demo-v1 .*, now by fake another"):
        run(source, out, Script(info=other))
    assert len(read(out)) == 4


def test_a_part_file_of_another_rubric_is_refused(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", NAMES), tmp_path / "out.jsonl"
    with pytest.raises(JudgeUnavailable):
        run(source, out, Script(dies_after=1))
    with pytest.raises(
        ConfigError, match=r"out\.jsonl\.part is of a run with rubric 'demo-v1', not 'harm-v1'"
    ):
        asyncio.run(score_file(source, out, Script(), "harm-v1"))
    (tmp_path / "out.jsonl.part").write_text("hello\n")
    with pytest.raises(ConfigError, match="is no part file"):
        run(source, out, Script())


def test_an_output_that_is_something_else_is_not_overwritten(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", ["a"]), tmp_path / "out.jsonl"
    out.write_text('{"mine": 1}\n')
    with pytest.raises(DataError, match=r"line 1: .* holds a row without a judgement"):
        run(source, out, Script())
    assert out.read_text() == '{"mine": 1}\n'


def test_long_texts_make_small_batches(tmp_path: Path) -> None:
    judge = Script()
    run(write(tmp_path / "in.jsonl", [c * 400_000 for c in "abcde"]), tmp_path / "out.jsonl", judge)
    assert judge.largest <= BATCH_BYTES


def test_the_trainer_reads_the_scores(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({**chat, "harm_score": 0.9}) + "\n")
    run(source, out, Script())
    with out.open("rb") as file:
        [row] = parse_rows(file)
    assert row.harm_score == 0.25
    assert read(out)[0]["judgement"]["content_hash"] == content_hash(list(row.messages[:-1]), "hello")


BROKEN = [
    (b"not json", "not valid JSON"),
    (b"[1]", "a JSON list where an object is due"),
    (b'{"prompt": "x"}', "neither 'messages' nor both 'prompt' and 'response'; it has prompt"),
    (b'{"prompt": 1, "response": "r"}', "prompt is a JSON number"),
    (b'{"prompt": "x", "response": null}', "response is a JSON null"),
    (b'{"prompt": "x", "response": NaN}', "NaN is not JSON"),
    (b'{"prompt": "x", "response": "\\ud800"}', "half of a surrogate pair at character 0"),
    (b'{"messages": []}', "the last turn of messages is missing"),
    (b'{"messages": [{"role": "user", "content": "q"}]}', "is the user's; it must be the assistant's"),
    (b'{"messages": [{"role": "tool", "content": "q"}]}', r"messages\[0\]\.role is 'tool'"),
    (b'{"messages": {}}', "messages is a JSON object"),
    (b"\xff\xfe", "byte 1 is not UTF-8"),
    (b"[" * 200_000, "nested too deeply|not valid JSON"),
]


@pytest.mark.parametrize(("line", "message"), BROKEN)
def test_a_broken_line_is_named(line: bytes, message: str) -> None:
    good = b'{"prompt": "p", "response": "r"}'
    found = list(iter_rows([good, b"  \n", line, good]))
    assert [type(one) for one in found] == [Row, DataError, Row]
    with pytest.raises(DataError, match=rf"line 3: .*({message})"):
        raise found[1]  # type: ignore[misc]


def test_a_broken_file_is_refused_whole_or_its_lines_are_left_out(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\xef\xbb\xbf" + b'{"prompt": "p", "response": "r"}\n' + b"x\n" * 30)
    with pytest.raises(DataError, match=r"30 broken lines, nothing was judged(.|\n)*and 10 more"):
        checked_rows(source, skip_broken=False)
    counts, broken, told = checked_rows(source, skip_broken=True)
    assert (len(counts), broken, len(told)) == (1, 30, 20)
    source.write_bytes(b"\n")
    with pytest.raises(DataError, match="holds no row"):
        checked_rows(source, skip_broken=True)
    with pytest.raises(DataError, match="cannot be read"):
        checked_rows(tmp_path / "none", skip_broken=True)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (Grade(0.0, 1), JudgeError, "is not to be trusted with rubric 'demo-v1': it missed"),
        (Grade(1.0, 5), JudgeError, "is not to be trusted"),
        (GradeFailure(FailureCode.PARSE_ERROR, "no label"), JudgeUnavailable, "were not answered: no label"),
        (BackendError("broken"), JudgeUnavailable, "were not answered: broken"),
        (BackendUnavailable("nothing listens"), JudgeUnavailable, "nothing listens"),
    ],
)
def test_a_judge_in_this_process_is_tried_first(answer: Any, error: type, message: str) -> None:
    class Always:
        info = BackendInfo("always", "m", ScoreKind.LABEL_PROBABILITY, concurrency=1)

        async def judge(self, batch: Sequence[GradeRequest]) -> list[Grade | GradeFailure]:
            if isinstance(answer, BackendError):
                raise answer
            return [answer] * len(batch)

    pairs = load_controls(RUBRIC, ScoreKind.LABEL_PROBABILITY)
    rubric = load_rubric(RUBRIC)
    with pytest.raises(error, match=message):
        asyncio.run(InProcessJudge(Always(), rubric, batch_size=4, controls=pairs).prepare())
    asyncio.run(InProcessJudge(Always(), rubric, batch_size=4, controls=()).prepare())


class Service:
    """Answers in the order of a script; remembers what came."""

    def __init__(self, *answers: httpx.Response | httpx.TransportError) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, dict[str, Any]]] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append((request.url.path, json.loads(request.content)))
        answer = self.answers.pop(0)
        if isinstance(answer, httpx.TransportError):
            raise answer
        return answer


def listed(*judgements: Any) -> httpx.Response:
    items = [one if isinstance(one, dict) else one.model_dump(mode="json") for one in judgements]
    return httpx.Response(200, json={"object": "list", "items": items})


def ask(service: Service, *ids: str, patience_s: float = 5.0) -> list[ScoredVerdict | FailedVerdict]:
    async def asking() -> list[ScoredVerdict | FailedVerdict]:
        judge = ServiceJudge(
            "http://judge/",
            RUBRIC,
            api_key="k",
            patience_s=patience_s,
            transport=httpx.MockTransport(service),
        )
        try:
            return await judge.judge([Item(key, "p", "r") for key in ids])
        finally:
            await judge.close()

    return asyncio.run(asking())


PENDING = {"id": "b", "status": "pending"}


def test_the_service_is_asked_until_all_are_there() -> None:
    service = Service(listed(scored("a"), PENDING), listed(PENDING), listed(failed("b")))
    assert [verdict.status for verdict in ask(service, "a", "b")] == ["scored", "failed"]
    paths = [path for path, _ in service.requests]
    assert paths == ["/v1/judgements", "/v1/judgements/read", "/v1/judgements/read"]
    assert service.requests[0][1]["priority"] == "evaluation"
    assert service.requests[2][1]["ids"] == ["b"]


def test_a_service_that_is_full_or_away_is_asked_again() -> None:
    service = Service(
        httpx.Response(503, headers={"Retry-After": "0"}),
        httpx.Response(429, headers={"Retry-After": "0"}),
        httpx.ConnectError("refused"),
        listed(scored("a")),
    )
    assert len(ask(service, "a")) == 1
    assert len(service.requests) == 4


def test_what_the_service_lost_is_sent_again_under_the_same_id() -> None:
    service = Service(listed(PENDING), httpx.Response(404), listed(scored("b")))
    ask(service, "b")
    assert [path for path, _ in service.requests].count("/v1/judgements") == 2
    assert service.requests[0][1] == service.requests[2][1]


def test_a_service_that_refuses_is_not_asked_again() -> None:
    service = Service(httpx.Response(422, text="unknown rubric"))
    with pytest.raises(JudgeRefusal, match="with 422: unknown rubric"):
        ask(service, "a")
    with pytest.raises(JudgeRefusal, match="is it a judge"):
        ask(Service(httpx.Response(200, text="<html>")), "a")


def test_patience_ends() -> None:
    with pytest.raises(JudgeUnavailable, match=r"refused; the same command goes on from here"):
        ask(Service(*[httpx.ConnectError("refused")] * 50), "a", patience_s=0.3)
    with pytest.raises(JudgeUnavailable, match="gave no verdict in 0 s: is a worker up"):
        ask(Service(listed(PENDING), listed(PENDING)), "b", patience_s=0)
