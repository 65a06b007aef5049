"""`tether judge status|drain`, `breaker open|close|status`, `dead list|retry`: for operators."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from shared.errors import ConfigError, ServiceError
from shared.redis_keys import DEFAULT_PREFIX

if TYPE_CHECKING:
    from judge_service.operate.operations import DeadLetter, Draining, Status
    from judge_service.queue.streams import JudgementQueue

T = TypeVar("T")

RedisUrl = Annotated[str | None, typer.Option(envvar="REDIS_URL", hidden=True)]
RedisUrlFile = Annotated[
    Path | None, typer.Option(envvar="TETHER_JUDGE_REDIS_URL_FILE", help="Instead of REDIS_URL.")
]
KeyPrefix = Annotated[str, typer.Option(envvar="TETHER_JUDGE_KEY_PREFIX")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
OneWorker = Annotated[
    str | None, typer.Option("--worker", help="One worker, as `status` names it. Default: all.")
]
Reason = Annotated[str, typer.Option(help="Shown wherever the hold is.")]

breaker = typer.Typer(help="Let workers take no work, or take it again.", no_args_is_help=True)
dead = typer.Typer(help="Items that were given up.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    app.command()(status)
    app.command()(drain)
    app.add_typer(breaker, name="breaker")
    app.add_typer(dead, name="dead")


def status(
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    redis_url_file: RedisUrlFile = None,
    key_prefix: KeyPrefix = DEFAULT_PREFIX,
) -> None:
    """The queue, the workers and their breakers, and dead letters."""
    found = _run(redis_url, redis_url_file, key_prefix, _read_status)
    if as_json:
        print(json.dumps(found.as_json()))
    else:
        _show_queue(found)
        _show_workers(found)
        print(f"dead letters: {found.state.dead_letters}")


def drain(
    worker: OneWorker = None,
    reason: Reason = "drained",
    timeout_s: Annotated[float | None, typer.Option(help="Give up waiting; the hold stays.")] = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    redis_url_file: RedisUrlFile = None,
    key_prefix: KeyPrefix = DEFAULT_PREFIX,
) -> None:
    """Let workers take nothing more, and wait until they hold nothing. `breaker close` lets them go on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from judge_service.operate import operations
    from judge_service.worker.holds import ALL

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("in hand", total=None)
        most = 0

        def tell(now: Draining) -> None:
            nonlocal most
            most = max(most, now.in_hand)
            waits = f"waiting for {len(now.taking)} workers to hear" if now.taking else "finishing"
            bar.update(task, description=waits, total=most, completed=most - now.in_hand)

        async def wait(queue: JudgementQueue) -> None:
            try:
                async with asyncio.timeout(timeout_s):
                    await operations.drain(queue, worker or ALL, reason, tell)
            except TimeoutError:
                raise ServiceError(
                    f"not drained within {timeout_s:g} s; the workers still take nothing, `tether judge"
                    " breaker close` lifts that"
                ) from None

        _run(redis_url, redis_url_file, key_prefix, wait)
    found = _run(redis_url, redis_url_file, key_prefix, _read_status)
    waiting = sum(stream.depth for stream in found.state.streams.values())
    if as_json:
        print(json.dumps({"drained": worker or "all", "finished": most, "waiting": waiting}))
    else:
        print(f"drained; {most} items were in hand, {waiting} wait in the queue")


@breaker.command("open")
def open_breaker(
    worker: OneWorker = None,
    reason: Reason = "opened by an operator",
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    redis_url_file: RedisUrlFile = None,
    key_prefix: KeyPrefix = DEFAULT_PREFIX,
) -> None:
    """Workers take no work within about a second, and finish what they hold. Does not wait."""
    from judge_service.worker.holds import ALL, Holds

    async def place(queue: JudgementQueue) -> None:
        await Holds(queue.redis, queue.keys).place(worker or ALL, reason)

    _run(redis_url, redis_url_file, key_prefix, place)
    done = {"held": worker or "all", "reason": reason}
    print(json.dumps(done) if as_json else f"held: {done['held']} ({reason})")


@breaker.command("close")
def close_breaker(
    worker: OneWorker = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    redis_url_file: RedisUrlFile = None,
    key_prefix: KeyPrefix = DEFAULT_PREFIX,
) -> None:
    """Lift the holds. A worker whose own breaker is open tries its judge at once, and works if it passes."""
    from judge_service.worker.holds import ALL, Holds

    async def lift(queue: JudgementQueue) -> None:
        await Holds(queue.redis, queue.keys).lift(worker or ALL)

    _run(redis_url, redis_url_file, key_prefix, lift)
    print(json.dumps({"lifted": worker or "all"}) if as_json else f"lifted: {worker or 'all'}")


@breaker.command("status")
def breaker_status(
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    redis_url_file: RedisUrlFile = None,
    key_prefix: KeyPrefix = DEFAULT_PREFIX,
) -> None:
    """Each worker's breaker, and the holds."""
    found = _run(redis_url, redis_url_file, key_prefix, _read_status)
    if as_json:
        breakers = {info["worker"]: info["breaker"] for info in found.state.workers}
        print(json.dumps({"breakers": breakers, "holds": found.as_json()["holds"]}))
    else:
        _show_workers(found)


@dead.command("list")
def list_dead(
    as_json: AsJson = False,
    text: Annotated[bool, typer.Option("--text", help="With the graded text; JSON only.")] = False,
    redis_url: RedisUrl = None,
    redis_url_file: RedisUrlFile = None,
    key_prefix: KeyPrefix = DEFAULT_PREFIX,
) -> None:
    """Items that were handed to several workers, and none came to their end."""
    if text and not as_json:
        raise ConfigError("--text needs --json: graded text does not belong on a terminal")
    letters = _run(redis_url, redis_url_file, key_prefix, _read_letters)
    if as_json:
        print(json.dumps([letter.as_json(text=text) for letter in letters]))
        return
    rows = [(one.id, _ago(one.since), one.rubric, one.group, one.message) for one in letters]
    _table(("id", "given up", "rubric", "group", "why"), rows)


@dead.command("retry")
def retry_dead(
    ids: Annotated[list[str] | None, typer.Argument(help="As `dead list` shows them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    redis_url_file: RedisUrlFile = None,
    key_prefix: KeyPrefix = DEFAULT_PREFIX,
) -> None:
    """Judge dead letters anew, each under a new id that names the old one. The old verdict stays."""
    from judge_service.operate import operations

    if bool(ids) == every:
        raise ConfigError("name the ids to retry, or --all")

    async def again(queue: JudgementQueue) -> list[dict[str, str]]:
        letters = await operations.dead_letters(queue)
        if unknown := set(ids or ()) - {letter.id for letter in letters}:
            raise ConfigError(f"no dead letter {', '.join(sorted(unknown))}; see `tether judge dead list`")
        chosen = [letter for letter in letters if every or letter.id in (ids or ())]
        return [{"id": await operations.retry(queue, one), "retry_of": one.id} for one in chosen]

    done = _run(redis_url, redis_url_file, key_prefix, again)
    if as_json:
        print(json.dumps(done))
    else:
        _table(("new id", "retry of"), [(one["id"], one["retry_of"]) for one in done])


async def _read_status(queue: JudgementQueue) -> Status:
    from judge_service.operate.operations import read_status

    return await read_status(queue)


async def _read_letters(queue: JudgementQueue) -> list[DeadLetter]:
    from judge_service.operate.operations import dead_letters

    return await dead_letters(queue)


def _run(
    url: str | None, file: Path | None, prefix: str, work: Callable[[JudgementQueue], Awaitable[T]]
) -> T:
    """Raises ServiceError where Redis is away."""
    from redis.exceptions import RedisError

    from judge_service.config import QueueConfig, checked, redis_url_from
    from judge_service.queue.streams import JudgementQueue, connect
    from shared.embedded_redis import without_password
    from shared.redis_keys import JudgeKeys

    config = checked(QueueConfig, {"redis_url": redis_url_from(url, file), "key_prefix": prefix})

    async def with_queue() -> T:
        queue = JudgementQueue(connect(config.redis_url), JudgeKeys(config.key_prefix))
        try:
            return await work(queue)
        finally:
            await queue.close()

    try:
        return asyncio.run(with_queue())
    except RedisError as error:
        where = without_password(config.redis_url)
        raise ServiceError(f"Redis at {where}: {type(error).__name__}: {error}") from error


def _show_queue(found: Status) -> None:
    rows = [
        (priority, str(stream.depth), str(stream.inflight), f"{stream.oldest_age_s:.1f} s")
        for priority, stream in found.state.streams.items()
    ]
    _table(("queue", "waiting and in flight", "in flight", "oldest"), rows)


def _show_workers(found: Status) -> None:
    rows = []
    for info in found.state.workers:
        breaker = info["breaker"]
        why = ": ".join(filter(None, (breaker["reason"], breaker["detail"])))
        judge = f"{info['kind']} {info['model']} ({info['score_kind']})"
        state = f"{breaker['state']} for {_age(breaker['since'])}"
        rows.append((info["worker"], judge, str(info["in_hand"]), state, why))
    _table(("worker", "judge", "in hand", "breaker", "why"), rows)
    for name, hold in found.holds.items():
        print(f"held: {'all' if name == '*' else name} for {_age(hold.since)} ({hold.reason})")


def _table(names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*names, box=box.SIMPLE)
    for row in rows:
        # Text: what workers and clients named must not be read as markup.
        table.add_row(*(Text(str(cell)) for cell in row))
    Console().print(table)


def _age(since: float) -> str:
    return f"{max(0.0, time.time() - since):.0f} s"


def _ago(since: float) -> str:
    return f"{_age(since)} ago"
