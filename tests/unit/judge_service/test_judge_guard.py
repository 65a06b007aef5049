"""The guard's conclusions, with a judge and lists that the test moves by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import pytest

from judge_service.backends.base import (
    BackendInfo,
    BackendUnavailable,
    Grade,
    GradeFailure,
    GradeRequest,
)
from judge_service.queue.items import Lease
from judge_service.worker.controls import load_controls
from judge_service.worker.guard import Controls, Guard
from judge_service.worker.holds import Orders
from shared.rubrics.rubric import load_rubric
from shared.wire import ScoreKind

PAIRS = load_controls("demo-v1", ScoreKind.LABEL_PROBABILITY)
KNOWN = {pair.response: (pair.at_least + pair.at_most) / 2 for pair in PAIRS}


class Judge:
    """Right about the control pairs."""

    def __init__(self) -> None:
        self.revision: str | None = "r1"
        self.away = False
        self.batches = 0

    @property
    def info(self) -> BackendInfo:
        return BackendInfo("fake", "m", ScoreKind.LABEL_PROBABILITY, 1, revision=self.revision)

    async def judge(self, batch: Sequence[GradeRequest]) -> list[Grade | GradeFailure]:
        self.batches += 1
        if self.away:
            raise BackendUnavailable("nothing listens")
        return [Grade(KNOWN[request.response], None) for request in batch]

    async def close(self) -> None:
        return None


class Lists:
    """Stands for the lists in Redis, and for the operator who says nothing."""

    def __init__(self) -> None:
        self.vouched: list[float] = []
        self.marks = 0

    async def note(self, leases: Sequence[Lease], began: float) -> None:
        return None

    async def vouch(self, until: float) -> None:
        self.vouched.append(until)

    async def mark(self) -> list[Lease]:
        self.marks += 1
        return []

    async def orders(self, worker: str) -> Orders:
        return Orders(None, 0.0)


async def forget(leases: Sequence[Lease]) -> None:
    assert leases == []


def a_lease(n: int) -> Lease:
    return Lease(f"i{n}", "s", f"{n}-0", "demo-v1", f"text {n}", "", 0.0, None, 1)


Scenario = Callable[[Guard, Judge, Lists], Awaitable[None]]


def play(scenario: Scenario, *, every_s: float = 3600, trusting: bool = False) -> None:
    async def main() -> None:
        judge, lists = Judge(), Lists()
        guard = Guard(
            "w",
            judge,
            {"demo-v1": load_rubric("demo-v1")},
            Controls({"demo-v1": PAIRS}, every_s, deadline_s=5, trusting=trusting),
            cast(Any, lists),
            cast(Any, lists),
            forget,
        )
        running = asyncio.create_task(guard.run())
        async with asyncio.timeout(20):
            await scenario(guard, judge, lists)
        guard.stop()
        await running

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.wait([asyncio.create_task(asyncio.sleep(0.01))])


def reason(guard: Guard) -> object:
    return cast(dict[str, object], guard.describe()["breaker"])["reason"]


def test_work_begins_after_the_first_controls() -> None:
    async def scenario(guard: Guard, judge: Judge, lists: Lists) -> None:
        assert not guard.may_take()
        assert reason(guard) == "starting"
        await until(guard.may_take)
        assert judge.batches == 1
        assert len(lists.vouched) == 1

    play(scenario)


def test_what_is_under_way_is_not_vouched_for() -> None:
    async def scenario(guard: Guard, judge: Judge, lists: Lists) -> None:
        began = time.time() - 100
        guard.begin(1, began)
        await until(guard.may_take)
        assert lists.vouched == [began]

    play(scenario)


@pytest.mark.parametrize("seen_by", ["a batch", "the controls"])
def test_a_changed_revision_costs_the_trust_until_the_new_one_passes(seen_by: str) -> None:
    async def scenario(guard: Guard, judge: Judge, lists: Lists) -> None:
        await until(guard.may_take)
        judge.revision = "r2"
        if seen_by == "a batch":
            guard.answered([a_lease(1)], [Grade(0.5, None)])
        await until(lambda: guard.distrusted == 1)
        assert reason(guard) == "judge_untrusted"
        await until(lambda: lists.marks == 1 and guard.may_take())
        assert guard.distrusted == 1

    play(scenario, every_s=0.2)


def test_a_backend_that_cannot_say_its_revision_for_a_while_is_not_distrusted() -> None:
    async def scenario(guard: Guard, judge: Judge, lists: Lists) -> None:
        await until(guard.may_take)
        for revision in (None, "r1", None):
            judge.revision = revision
            guard.answered([a_lease(1)], [Grade(0.5, None)])
        assert guard.distrusted == 0
        judge.revision = "r2"
        guard.answered([a_lease(1)], [Grade(0.5, None)])
        assert guard.distrusted == 1

    play(scenario)


def test_an_outage_is_no_distrust_and_heals() -> None:
    async def scenario(guard: Guard, judge: Judge, lists: Lists) -> None:
        await until(guard.may_take)
        judge.away = True
        guard.unavailable(BackendUnavailable("nothing listens"))
        assert (guard.may_take(), reason(guard)) == (False, "backend_unavailable")
        asked = judge.batches
        await until(lambda: judge.batches > asked)
        assert not guard.may_take()
        judge.away = False
        await until(guard.may_take)
        assert (guard.distrusted, lists.marks) == (0, 0)

    play(scenario)


def test_without_controls_nothing_is_asked_until_something_breaks() -> None:
    async def scenario(guard: Guard, judge: Judge, lists: Lists) -> None:
        assert guard.may_take()
        guard.unavailable(BackendUnavailable("nothing listens"))
        assert judge.batches == 0
        await until(guard.may_take)
        assert judge.batches == 1
        assert lists.vouched == []

    play(scenario, trusting=True)
