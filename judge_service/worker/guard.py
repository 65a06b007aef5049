"""Whether a worker may judge: its judge's control pairs, its breaker, and the operator's word.

A worker asks `may_take` before it takes work, tells what came of it, and compares `distrusted` before and
after a batch: what a judge answered while trust in it was lost is not stored.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from redis.exceptions import RedisError

from judge_service.backends.base import (
    Backend,
    BackendError,
    BackendUnavailable,
    Grade,
    GradeFailure,
    GradeRequest,
)
from judge_service.queue.items import Lease
from judge_service.worker import breaker
from judge_service.worker.breaker import Closed, ErrorRate, Open, Reason
from judge_service.worker.controls import (
    ConstantStream,
    ControlPair,
    Missed,
    Outcome,
    Passed,
    Unanswered,
    check,
)
from judge_service.worker.holds import Hold, Holds
from judge_service.worker.trust import Unvouched
from shared.logs import fields
from shared.rubrics.rubric import Rubric

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between looks at the operator's word."""

Forget = Callable[[Sequence[Lease]], Awaitable[None]]


@dataclass(frozen=True)
class Controls:
    """What a judge is tried with."""

    pairs: Mapping[str, tuple[ControlPair, ...]]
    """By the rubric's name."""
    every_s: float
    deadline_s: float
    """A judge that has not answered the pairs by then is away."""
    trusting: bool = False
    """Do not look at the scores, only whether there are any: for judges that mean nothing, in trials."""


@dataclass(frozen=True)
class Away:
    """The control pairs could not be asked."""

    reason: Reason
    detail: str


async def wait_set(event: asyncio.Event, longest_s: float) -> None:
    """Until the event is set, or so long."""
    try:
        async with asyncio.timeout(longest_s):
            await event.wait()
    except TimeoutError:
        return


class Guard:
    def __init__(
        self,
        worker: str,
        backend: Backend,
        rubrics: Mapping[str, Rubric],
        controls: Controls,
        unvouched: Unvouched,
        holds: Holds,
        forget: Forget,
    ) -> None:
        """`forget`: drops what a cache keeps of verdicts that have turned suspect."""
        self._worker = worker
        self._backend = backend
        self._controls = controls
        self._requests = [
            (pair, GradeRequest(rubrics[name], pair.prompt, pair.response))
            for name, pairs in controls.pairs.items()
            for pair in pairs
        ]
        self._unvouched = unvouched
        self._holds = holds
        self._forget = forget
        now = time.time()
        self._state: breaker.State = (
            Closed(now)
            if controls.trusting
            else Open(Reason.STARTING, "the control pairs have not been answered yet", now)
        )
        self._hold: Hold | None = None
        self._probe_asked = 0.0
        self._last_control: float | None = None
        self._next_control = time.monotonic() + (controls.every_s if controls.trusting else 0.0)
        self._errors = ErrorRate()
        self._constant: dict[str, ConstantStream] = {}
        self._revision = backend.info.revision
        self._under_way: dict[int, float] = {}
        self._tainted = False
        self._changed = asyncio.Event()
        self._stopped = asyncio.Event()
        self.distrusted = 0
        """Times that the judge has lost trust."""

    # --- what the worker asks --------------------------------------------------------------

    def may_take(self) -> bool:
        return isinstance(self._state, Closed) and self._hold is None

    def may_judge(self) -> bool:
        """What was taken before a hold may still be judged, if the judge is there and trusted."""
        return isinstance(self._state, Closed)

    async def until_changed(self, longest_s: float) -> None:
        """Until `may_take` may have changed, or so long."""
        self._changed.clear()
        await wait_set(self._changed, longest_s)

    def describe(self) -> dict[str, object]:
        """As readiness and `tether judge status` show it."""
        state = breaker.describe(self._state)
        if self._hold is not None:
            held = {"state": "open", "reason": "operator", "detail": self._hold.reason}
            state |= {**held, "since": self._hold.since}
        controls = "off" if self._controls.trusting else "on"
        return {"breaker": state, "controls": {"mode": controls, "last_good": self._last_control}}

    # --- what the worker tells -------------------------------------------------------------

    def begin(self, number: int, began: float) -> None:
        """A batch is about to be judged; what it answers is not yet vouched for."""
        self._under_way[number] = began

    async def note(self, leases: Sequence[Lease], began: float) -> None:
        """These get their verdicts from the judge now. Raises redis.RedisError."""
        if not self._controls.trusting:
            await self._unvouched.note(leases, began)

    def end(self, number: int) -> None:
        self._under_way.pop(number, None)

    def unavailable(self, error: BackendUnavailable) -> None:
        self._open(Reason.BACKEND_UNAVAILABLE, str(error))

    def answered(
        self,
        leases: Sequence[Lease],
        answers: Sequence[Grade | GradeFailure],
        *,
        whole_batch_failed: bool = False,
    ) -> None:
        """What the judge gave to a batch, before any of it is stored."""
        self._errors.note(answers, whole_batch_failed=whole_batch_failed)
        if (trouble := self._errors.trouble()) is not None:
            self._open(Reason.BACKEND_FAILING, trouble)
        if self._controls.trusting:
            return
        if (changed := self._revision_change()) is not None:
            self._distrust(changed)
        for lease, answer in zip(leases, answers, strict=True):
            self._constant.setdefault(lease.rubric, ConstantStream()).note(lease.body, answer)
        for rubric, stream in list(self._constant.items()):
            if (trouble := stream.trouble()) is not None:
                self._distrust(f"by rubric {rubric!r} it {trouble}")

    def stored_late(self) -> None:
        """A verdict may have been stored after trust was lost and its like were marked: mark again."""
        self._tainted = True

    # --- what it does by itself ------------------------------------------------------------

    def stop(self) -> None:
        """`run` returns soon."""
        self._stopped.set()

    async def run(self) -> None:
        """Look, try and mark, until stopped; through every outage of Redis."""
        while not self._stopped.is_set():
            try:
                await self._look()
                if self._tainted:
                    await self._mark()
            except RedisError as error:
                logger.warning("Redis is away", extra=fields(call="guard", error=type(error).__name__))
            if time.monotonic() >= self._next_control:
                await self._try()
            await wait_set(self._stopped, min(LOOK_S, max(0.05, self._next_control - time.monotonic())))

    async def look(self) -> None:
        """Once before work begins: what the operator has said. Raises redis.RedisError."""
        await self._look()

    async def _look(self) -> None:
        orders = await self._holds.orders(self._worker)
        if orders.probe_asked > self._probe_asked and isinstance(self._state, Open):
            self._next_control = time.monotonic()
        self._probe_asked = orders.probe_asked
        if orders.hold != self._hold:
            self._hold = orders.hold
            what = "held by the operator" if orders.hold else "no longer held"
            logger.warning(what, extra=fields(reason=orders.hold.reason if orders.hold else None))
            self._changed.set()

    async def _try(self) -> None:
        """Ask the control pairs and draw the conclusion."""
        was_open = not isinstance(self._state, Closed)
        self._state = breaker.probing(self._state)
        # What is under way began before, and is not vouched for.
        began = min([time.time(), *self._under_way.values()])
        losses = self.distrusted
        outcome = await self._ask()
        match outcome:
            case Passed():
                if losses != self.distrusted:
                    # Trust was lost for another cause meanwhile; the next try decides.
                    self._next_control = time.monotonic() + breaker.FIRST_PAUSE_S
                    return
                self._passed(was_open, began)
                await self._vouch(began)
            case Missed(detail):
                self._failed(Reason.JUDGE_UNTRUSTED, detail)
            case Unanswered(detail):
                self._failed(Reason.BACKEND_FAILING, detail)
            case Away(reason, detail):
                self._failed(reason, detail)

    async def _ask(self) -> Outcome | Away:
        try:
            async with asyncio.timeout(self._controls.deadline_s):
                answers = await self._backend.judge([request for _, request in self._requests])
        except TimeoutError:
            return Away(
                Reason.BACKEND_UNAVAILABLE,
                f"the control pairs were not answered within {self._controls.deadline_s:g} s",
            )
        except BackendUnavailable as error:
            return Away(Reason.BACKEND_UNAVAILABLE, str(error))
        except BackendError as error:
            return Away(Reason.BACKEND_FAILING, str(error))
        if len(answers) != len(self._requests):
            message = f"the backend gave {len(answers)} answers to {len(self._requests)} control pairs"
            return Away(Reason.BACKEND_FAILING, message)
        if self._controls.trusting:
            failed = [answer for answer in answers if isinstance(answer, GradeFailure)]
            return Passed() if len(failed) < len(answers) else Unanswered(failed[0].message)
        # Without trouble now: a change that was not seen by a batch taints what was judged before it.
        if (changed := self._revision_change()) is not None:
            self._distrust(changed)
        return check([pair for pair, _ in self._requests], answers)

    def _passed(self, was_open: bool, now: float) -> None:
        self._state = breaker.probe_passed(self._state, now)
        self._last_control = now
        self._next_control = time.monotonic() + self._controls.every_s
        self._errors.reset()
        self._constant.clear()
        if was_open:
            logger.info("the control pairs passed; taking work", extra=fields(worker=self._worker))
            self._changed.set()

    def _failed(self, reason: Reason, detail: str) -> None:
        if reason is Reason.JUDGE_UNTRUSTED:
            self._distrust(detail)
        else:
            self._open(reason, detail)
        self._state = breaker.probe_failed(self._state, reason, detail, time.time())
        self._next_control = time.monotonic() + breaker.pause_s(self._state.probes)

    async def _vouch(self, until: float) -> None:
        if self._controls.trusting or self._tainted:
            return
        try:
            await self._unvouched.vouch(until)
        except RedisError as error:
            # The list only stays longer than it need.
            logger.warning("Redis is away", extra=fields(call="vouch", error=type(error).__name__))

    def _revision_change(self) -> str | None:
        now, before = self._backend.info.revision, self._revision
        # None: the backend could not ask yet, or cannot just now.
        if now is None or now == before:
            return None
        self._revision = now
        if before is None:
            return None
        return f"its model's revision changed from {before} to {now}"

    def _distrust(self, detail: str) -> None:
        self.distrusted += 1
        self._tainted = True
        self._errors.reset()
        self._constant.clear()
        self._open(Reason.JUDGE_UNTRUSTED, detail)

    def _open(self, reason: Reason, detail: str) -> None:
        first = isinstance(self._state, Closed)
        self._state = breaker.opened(self._state, reason, detail, time.time())
        if first:
            self._next_control = time.monotonic() + breaker.pause_s(0)
            self._errors.reset()
        if first or reason is Reason.JUDGE_UNTRUSTED:
            logger.error("the breaker is open", extra=fields(reason=reason.value, detail=detail))
        self._changed.set()

    async def _mark(self) -> None:
        """Raises redis.RedisError; nothing is lost by doing it again."""
        self._tainted = False
        try:
            marked = await self._unvouched.mark()
            await self._forget(marked)
        except RedisError:
            self._tainted = True
            raise
        if marked:
            logger.error("verdicts are suspect", extra=fields(items=len(marked)))
