"""What is known of a file's rows: the finished output, and the part file of a run that was interrupted.

OUT.jsonl        whole: every row with its verdict, in the order of the input
OUT.jsonl.part   while a run goes on: one verdict a line, in the order they came
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from pydantic import TypeAdapter, ValidationError

from shared.errors import ConfigError, DataError, JudgeError
from shared.wire import FailedVerdict, JudgeInfo, ScoredVerdict, Verdict

_VERDICT: TypeAdapter[ScoredVerdict | FailedVerdict] = TypeAdapter(Verdict)


@dataclass
class Known:
    """Verdicts by content hash. All scored ones are by one judge."""

    verdicts: dict[str, ScoredVerdict | FailedVerdict] = field(default_factory=dict)
    judge: JudgeInfo | None = None
    attempts: dict[str, int] = field(default_factory=dict)
    """How often the interrupted run got no usable verdict for a text: asking again needs a new id."""

    def settled(self, content: str) -> bool:
        """Whether it needs no (further) judging: a failed or doubtful verdict does."""
        verdict = self.verdicts.get(content)
        return isinstance(verdict, ScoredVerdict) and not verdict.suspect

    def add(self, content: str, verdict: ScoredVerdict | FailedVerdict) -> None:
        """Raises JudgeError where another judge or rubric speaks than before: scores must not mix."""
        if isinstance(verdict, ScoredVerdict):
            if self.judge is not None and verdict.judge != self.judge:
                raise JudgeError(
                    f"the judge changed: verdicts so far are by {_told(self.judge)}, now by"
                    f" {_told(verdict.judge)}; scores of two judges do not mix, so give another --out, or"
                    " remove what is there and score all again"
                )
            self.judge = verdict.judge
        self.verdicts[content] = verdict
        if not self.settled(content):
            self.attempts[content] = self.attempts.get(content, 0) + 1


def _told(judge: JudgeInfo) -> str:
    revision = f" at {judge.revision}" if judge.revision else ""
    return f"{judge.kind} {judge.model}{revision} with {judge.rubric} ({judge.rubric_hash})"


class PartFile:
    """Append-only, a line a verdict, so that a crash costs at most the line it tore."""

    def __init__(self, out: Path, rubric: str, known: Known) -> None:
        """Reads what an interrupted run left, into `known`.

        Raises:
            ConfigError: it is of a run by another rubric, or it cannot be read.
            JudgeError: it is by another judge than what is known.
        """
        self.path = out.with_name(out.name + ".part")
        self.token = secrets.token_hex(8)
        """Begins every id of the run, so that a service asked again after a crash knows them."""
        if self.path.exists():
            self._take_up(rubric, known)
        try:
            self._file: TextIO = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {self.path}: {error.strerror}") from error
        if self._file.tell() == 0:
            self._write({"run": self.token, "rubric": rubric})

    def add(self, content: str, verdict: ScoredVerdict | FailedVerdict) -> None:
        self._write({"content_hash": content, "verdict": verdict.model_dump(mode="json")})

    def __enter__(self) -> PartFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def remove(self) -> None:
        self._file.close()
        self.path.unlink()

    def _write(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()

    def _take_up(self, rubric: str, known: Known) -> None:
        drop_torn_line(self.path)
        lines = self.path.read_bytes().splitlines()
        if not lines:
            return
        try:
            head = json.loads(lines[0])
            if head["rubric"] != rubric:
                raise ConfigError(
                    f"{self.path} is of a run with rubric {head['rubric']!r}, not {rubric!r}: go on with that"
                    " one, or remove the file to begin anew"
                )
            self.token = head["run"]
            for line in lines[1:]:
                value = json.loads(line)
                known.add(value["content_hash"], _VERDICT.validate_python(value["verdict"]))
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise ConfigError(
                f"{self.path} is no part file of `tether judge score` ({error}); remove it to begin anew"
            ) from error


def drop_torn_line(path: Path) -> None:
    """What a crash left of a line after the last newline."""
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def scored_rows(path: Path) -> Iterator[tuple[str, ScoredVerdict]]:
    """The scored rows of a finished output: content hash and verdict.

    Raises:
        DataError: the file is no output of `tether judge score`.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                content, verdict = verdict_of(json.loads(line)["judgement"])
            except (ValueError, KeyError, TypeError, ValidationError) as error:
                raise DataError(
                    f"{path} holds a row without a judgement ({type(error).__name__}); it is no output of"
                    " `tether judge score`: give another --out",
                    line=number,
                ) from error
            if isinstance(verdict, ScoredVerdict):
                yield content, verdict


JUDGEMENT_LEAVES_OUT = {"id", "cached", "timings", "rationale"}


def judgement_of(content: str, rubric: str, verdict: ScoredVerdict | FailedVerdict) -> dict[str, Any]:
    """What an output row says under `judgement`."""
    dumped = verdict.model_dump(mode="json", exclude=JUDGEMENT_LEAVES_OUT, exclude_none=True)
    told = {key: value for key, value in dumped.items() if value is not False}
    judge = told.pop("judge", {})
    return {
        "content_hash": content,
        "rubric": judge.pop("rubric", rubric),
        "rubric_hash": judge.pop("rubric_hash", None),
        **told,
        "judge": judge or None,
    }


def verdict_of(judgement: dict[str, Any]) -> tuple[str, ScoredVerdict | FailedVerdict]:
    """(content hash, verdict): `judgement_of`, undone. Raises KeyError, TypeError or ValidationError."""
    own = {"content_hash", "rubric", "rubric_hash", "judge"}
    verdict = {key: value for key, value in judgement.items() if key not in own}
    verdict |= {"id": judgement["content_hash"], "timings": {"queue_ms": 0, "judge_ms": 0}}
    if judgement["judge"] is not None:
        verdict["judge"] = judgement["judge"] | {key: judgement[key] for key in ("rubric", "rubric_hash")}
    return judgement["content_hash"], _VERDICT.validate_python(verdict)


def replace_with(path: Path, lines: Iterator[bytes]) -> None:
    """Writes a file whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
