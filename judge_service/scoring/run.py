"""Scores for the rows of a file: what has a verdict already is not judged again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from judge_service.scoring.judge import Item, Judge
from judge_service.scoring.rows import Row, iter_rows
from judge_service.scoring.store import Known, PartFile, judgement_of, replace_with, scored_rows
from shared.errors import DataError, JudgeError
from shared.wire import FailedVerdict, ScoredVerdict

BATCH_BYTES = 1_000_000
"""Most text in one batch; one row may have more. A service refuses bodies of more than a few MB."""

TOLD_FAULTS = 20
"""Broken lines that are named; the others are counted."""

AnyVerdict = ScoredVerdict | FailedVerdict
Report = Callable[[int, int], None]
"""Told (rows done, rows in all)."""


@dataclass(frozen=True)
class Outcome:
    rows: int
    scored: int
    failed: dict[str, int]
    """Rows by failure code; `suspect` for a score whose judge failed its control pairs."""
    reused: int
    """Texts that had their verdict before this run."""
    judged: int
    """Texts judged in this run. Rows with the same text are judged once."""
    broken: int
    """Lines left out."""


def checked_rows(source: Path, *, skip_broken: bool) -> tuple[dict[str, int], int, list[str]]:
    """One pass over the file: rows by content hash, how many lines are broken, and what is wrong with
    the first of them.

    Raises:
        DataError: a line is broken and may not be skipped, or there is no row; it names the lines.
    """
    counts: dict[str, int] = {}
    broken, told = 0, list[str]()
    for row in read_rows(source):
        if isinstance(row, DataError):
            broken += 1
            if len(told) < TOLD_FAULTS:
                told.append(str(row))
        else:
            counts[row.hash] = counts.get(row.hash, 0) + 1
    if broken and not skip_broken:
        more = f"\n  and {broken - len(told)} more" if broken > len(told) else ""
        raise DataError(
            f"{source}: {broken} broken lines, nothing was judged; mend them, or leave them out with"
            " --skip-broken\n  " + "\n  ".join(told) + more
        )
    if not counts:
        raise DataError(f"{source} holds no row: give one JSON object a line")
    return counts, broken, told


def read_rows(source: Path) -> Iterator[Row | DataError]:
    """Raises DataError where the file cannot be read."""
    try:
        with source.open("rb") as file:
            yield from iter_rows(file)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from error


async def score_file(
    source: Path,
    out: Path,
    judge: Judge,
    rubric: str,
    *,
    skip_broken: bool = False,
    report: Report = lambda done, total: None,
) -> Outcome:
    """Every row of `source` with its verdict, in its order, into `out`.

    Interrupted, it leaves `out.part`, from which the next call goes on. Rows that `out` holds with a
    score already keep it; failed ones are judged again.

    Raises:
        DataError: the file is broken, or changed meanwhile.
        ConfigError: what `out` or its part file holds is of another rubric.
        JudgeError: the judge is away, refuses, or is another than that of the scores so far.
    """
    counts, broken, _ = checked_rows(source, skip_broken=skip_broken)
    known = _finished(out, counts, rubric)
    with PartFile(out, rubric, known) as part:
        reused = sum(known.settled(content) for content in counts)
        total = sum(counts.values())
        done = sum(count for content, count in counts.items() if known.settled(content))
        report(done, total)
        judged = 0

        def record(content: str, verdict: AnyVerdict) -> None:
            nonlocal done, judged
            part.add(content, verdict)
            known.add(content, verdict)
            done += counts[content]
            judged += 1
            report(done, total)

        await judge_all(_unsettled(source, known), judge, part.token, known.attempts, record)
        replace_with(out, _scored_lines(source, known.verdicts, rubric))
        part.remove()
    failed: dict[str, int] = {}
    for content, count in counts.items():
        if not known.settled(content):
            end = known.verdicts[content]
            code = end.error.code.value if isinstance(end, FailedVerdict) else "suspect"
            failed[code] = failed.get(code, 0) + count
    return Outcome(total, total - sum(failed.values()), failed, reused, judged, broken)


def _finished(out: Path, wanted: Collection[str], rubric: str) -> Known:
    """What an earlier run has scored of these texts."""
    known = Known()
    if out.exists():
        for content, verdict in scored_rows(out):
            if content in wanted:
                known.add(content, verdict)
    if known.judge is not None and known.judge.rubric != rubric:
        raise JudgeError(
            f"{out} holds scores by rubric {known.judge.rubric!r}, not {rubric!r}: give another --out"
        )
    return known


def _unsettled(source: Path, known: Known) -> Iterator[Row]:
    """Each text once."""
    asked: set[str] = set()
    for row in read_rows(source):
        if isinstance(row, Row) and row.hash not in asked and not known.settled(row.hash):
            asked.add(row.hash)
            yield row


async def judge_all(
    rows: Iterable[Row],
    judge: Judge,
    token: str,
    attempts: Mapping[str, int],
    record: Callable[[str, AnyVerdict], None],
) -> None:
    """As many batches at once as the judge gains from; the rows are read no further ahead.

    Raises:
        JudgeError: as the judge does; what came before is recorded.
    """
    free = asyncio.Semaphore(judge.concurrency)

    async def one(batch: list[tuple[str, Item]]) -> None:
        try:
            verdicts = await judge.judge([item for _, item in batch])
            for (content, _), verdict in zip(batch, verdicts, strict=True):
                record(content, verdict)
        finally:
            free.release()

    try:
        async with asyncio.TaskGroup() as tasks:
            for batch in _batches(rows, judge.batch_size, token, attempts):
                await free.acquire()
                tasks.create_task(one(batch))
    except ExceptionGroup as group:
        # Several batches may have met the same outage: the first tells.
        raise _first(group) from group


def _batches(
    rows: Iterable[Row], size: int, token: str, attempts: Mapping[str, int]
) -> Iterator[list[tuple[str, Item]]]:
    batch: list[tuple[str, Item]] = []
    held = 0
    for row in rows:
        content = row.hash
        length = len(json.dumps(row.raw))
        if batch and (len(batch) == size or held + length > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        item = Item(f"{token}-{attempts.get(content, 0)}-{content[:32]}", row.prompt, row.response)
        batch.append((content, item))
        held += length
    if batch:
        yield batch


def _scored_lines(source: Path, verdicts: Mapping[str, AnyVerdict], rubric: str) -> Iterator[bytes]:
    for row in read_rows(source):
        if isinstance(row, DataError):
            continue
        if row.hash not in verdicts:
            raise DataError(f"{source} was changed while it was judged; run the same command again")
        yield scored_line(row, verdicts[row.hash], rubric)


def scored_line(row: Row, verdict: AnyVerdict, rubric: str) -> bytes:
    """The row as it stood, with `judgement`, and with `harm_score` where that is trusted."""
    told = {key: value for key, value in row.raw.items() if key not in ("harm_score", "judgement")}
    if isinstance(verdict, ScoredVerdict) and not verdict.suspect:
        told["harm_score"] = verdict.score
    told["judgement"] = judgement_of(row.hash, rubric, verdict)
    return json.dumps(told, ensure_ascii=False).encode() + b"\n"


def _first(error: BaseExceptionGroup[Exception]) -> Exception:
    inner = error.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


async def score_pair(judge: Judge, row: Row) -> AnyVerdict:
    """Raises JudgeError, as the judge does."""
    [verdict] = await judge.judge([Item(f"{token_hex(8)}-0", row.prompt, row.response)])
    return verdict
