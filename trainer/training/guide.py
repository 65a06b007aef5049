"""Where a step's betas come from when a judge is asked: its readings, by way of the controller."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shared.errors import JudgeRefusal
from shared.safety import Adaptive, PolicySource, TargetSource
from trainer.data.rows import ChatRow
from trainer.safety.controller import Controller
from trainer.safety.decision import Action, Basis
from trainer.safety.journal import Journal
from trainer.safety.judge_client import JudgeClient, NoJudge
from trainer.safety.pace import WINDOW, pace_of
from trainer.safety.probe.trust import Standing
from trainer.safety.question import Question
from trainer.safety.reading import UNTRUSTED
from trainer.safety.seen import Seen
from trainer.training.asking import Asking
from trainer.training.distributed import Collective, Exchange, Signal
from trainer.training.guidance import Guidance, stopped
from trainer.training.order import DataOrder
from trainer.training.oversight import Oversight, Tell
from trainer.training.scan_window import ScanWindow

if TYPE_CHECKING:
    from trainer.training.critic import Critic
    from trainer.training.data import Batch

POLL_S = 0.02
"""Between two exchanges while a step waits."""

SCAN_ROWS = 512
"""Rows that are with the judge at once, at most, while it reads the whole file; the look-ahead's if that is
more."""


class JudgedBeta:
    """Asks the judge ahead of the steps, and lets the controller decide.

    Args:
        rows: the training file.
        critic: set before the first `guide` with a probe, and `asking.sampler` with a policy source.
        log: given a line for each call to the controller, for replay.
        tell: given what the run's owner should know.
        known_scores: target scores by row that were had beforehand.
    """

    def __init__(
        self,
        method: Adaptive,
        *,
        rows: Sequence[ChatRow],
        order: DataOrder,
        client: JudgeClient | NoJudge,
        collective: Collective,
        stopping: Callable[[], bool],
        log: Callable[[dict[str, Any]], None],
        tell: Tell,
        known_scores: Mapping[int, float],
    ) -> None:
        look_ahead = next((s.look_ahead for s in method.sources if isinstance(s, TargetSource)), 0)
        if method.probe is not None and method.probe.scan:
            method = _looking_ahead(method, -(-len(rows) // order.batch_size))
        self._method = method
        self._journal = Journal(method, known_scores, log)
        self._oversight = Oversight(method.staleness, self.controller, tell)
        self._seen = Seen()
        self.client = client
        self.asking = Asking(
            method,
            rows=rows,
            order=order,
            journal=self._journal,
            client=client,
            world=collective.world,
        )
        self.critic: Critic | None = None
        policy = next((s for s in method.sources if isinstance(s, PolicySource)), None)
        ranks = collective.world.ranks
        self._pace = None if policy is None else pace_of(policy, method.staleness, ranks)
        self._decided_at: float | None = None
        """When the step before was decided, by rank 0's clock."""
        self._k = method.staleness.max_staleness
        self._rows = rows
        self._order = order
        self._collective = collective
        self._stopping = stopping
        self._tell = tell
        self._told = 0
        """Rows of the scan."""
        self._window = ScanWindow(
            max(1, look_ahead), -(-SCAN_ROWS // order.batch_size), method.staleness.deadline_s
        )

    @property
    def controller(self) -> Controller:
        return self._journal.controller

    # --- beginning -------------------------------------------------------------------------

    def start(self, step: int) -> None:
        """Scans the target scores of the first batches, so that the judge works while the model loads."""
        now = self._exchange().now
        self._open_ahead(min(step, self.controller.first_reading + self._window.size), now)

    def _open(self, made_at: int, policy_rows: Sequence[int], now: float) -> None:
        self.asking.open(made_at, policy_rows, now)
        self._seen.opened(made_at, now)

    def _open_ahead(self, until: int, now: float) -> None:
        """The readings before the first step, up to `until`."""
        for made_at in range(self.controller.first_reading, until):
            if not self.controller.is_open(made_at):
                self._open(made_at, [], now)

    def scan(self) -> None:
        """With a probe that is taught beforehand: waits until the judge has read the whole file, or has let
        it wait for as long as it may. The rows are asked for a window at a time, each with its own deadline.
        Rows that could not be judged are left out of what is taught; they train as such rows do."""
        if self._method.probe is None or not self._method.probe.scan or self.controller.cursor >= -1:
            return
        first, counts = self.controller.first_reading, self.controller.counts
        scored = counts.scored
        heard = self._exchange()
        for made_at in range(max(first, self.controller.cursor + 1), 0):
            self._open_ahead(min(0, made_at + self._window.size), heard.now)
            began = heard.now
            # As step made_at + K would have it: its reading is folded, and so are those before it.
            while self._may_go_on(heard) and self._journal.must_wait(made_at + self._k, heard.now):
                self.client.wait_for_news(POLL_S)
                heard = self._exchange()
            if heard.signal is Signal.STOP:
                return
            self._window.read(heard.now - began, heard=counts.scored > scored or not counts.timeouts)
            scored = counts.scored
            read = min(len(self._rows), (made_at - first + 1) * self._order.batch_size)
            self._tell_scan(read, made_at == -1)

    def _tell_scan(self, read: int, done: bool) -> None:
        # Ten times at most: each is an event of the job.
        if done or read - self._told >= len(self._rows) / 10:
            self._told = read
            self._tell("info", f"the judge has been asked about {read} of {len(self._rows)} rows", None)

    def _may_go_on(self, heard: Exchange) -> bool:
        """Raises JudgeRefusal where the judge refuses a rank's questions."""
        if heard.signal is Signal.REFUSED:
            raise self.client.refusal or JudgeRefusal("the judge refused another rank's questions")
        return heard.signal is not Signal.STOP

    def resume(self, state: dict[str, Any], *, after_outage: bool, step: int) -> None:
        """Takes up a checkpoint's state, and asks again what was out."""
        now = self._exchange().now
        self._journal.restore(state["controller"], t=step, now=now)
        self._oversight.resumed()
        self._seen = Seen.from_state(state["seen"])
        if self._pace is not None:
            self._pace.restore(state["pace"])
        if self.controller.outages:
            self.client.outage_over(self.controller.outages, self.controller.anew_from)
        if not after_outage:
            self.asking.ask([Question.from_json(raw) for raw in state["unanswered"]])
            return
        first = self._journal.outage_over(step)
        self.client.outage_over(self.controller.outages, first)
        self._reopen = range(first, step)

    _reopen: range = range(0)
    """Readings to be made anew once the model can speak."""

    # --- one step --------------------------------------------------------------------------

    def guide(self, step: int, rows: tuple[int, ...]) -> Guidance:
        self.asking.generate_s = 0.0
        samples = 0
        now = self._exchange().now
        for made_at in [*self._reopen, step]:
            if not self.controller.is_open(made_at):
                # What would be answered for a batch that has trained already is not asked.
                ahead = made_at + self._k >= step
                policy_rows = self.policy_rows(made_at) if ahead else []
                self._open(made_at, policy_rows, now)
                samples = len(policy_rows)
        self._reopen = range(0)
        if self.critic is not None:
            # The judge works on meanwhile.
            self.critic.look(rows)
        began_waiting: float | None = None
        waits_since: float | None = None
        while True:
            heard = self._exchange()
            if not self._may_go_on(heard):
                return stopped()
            if not self._journal.must_wait(step, heard.now):
                break
            if began_waiting is None:
                began_waiting, waits_since = time.monotonic(), heard.now
            self.client.wait_for_news(POLL_S)
        waited = 0.0 if began_waiting is None else time.monotonic() - began_waiting
        self.asking.folded(self.controller.cursor)
        foretold = None
        if self.critic is not None:
            foretold = self.critic.foretell(self.controller.take_taught(), rows)
        decision = self._journal.decide(step, rows, foretold)
        self._oversight.decided(step, decision, waited, self.client.trouble or self.client.state)
        if decision.action is Action.TRAIN and not decision.overdue:
            self._keep_pace(step, heard.now, 0.0 if waits_since is None else heard.now - waits_since)
        self._decided_at = heard.now
        age = self._seen.stepped(
            self.controller, decision, heard.now, generate_s=self.asking.generate_s, wait_s=waited
        )
        return Guidance(
            action=decision.action,
            betas=decision.betas,
            stop=False,
            risk=decision.risk,
            staleness=decision.staleness,
            overdue=decision.overdue,
            wait_s=waited,
            generate_s=self.asking.generate_s,
            bases={basis.value: decision.bases.count(basis) for basis in Basis},
            kept=None if all(decision.kept) else decision.kept,
            samples=samples,
            age=age,
            probe=Standing() if self.critic is None else self.critic.standing,
        )

    @property
    def ahead(self) -> list[Batch] | None:
        """The step's micro-batches of this rank, where the reference was asked before the betas."""
        return None if self.critic is None else self.critic.ahead

    def cause(self) -> str:
        """Why there are no readings."""
        return self._oversight.cause(self.client.trouble or self.client.state)

    def _exchange(self) -> Exchange:
        signal = Signal.STOP if self._stopping() else Signal.GO_ON
        if self.client.refusal:
            signal = Signal.REFUSED
        heard = self._collective.exchange(self.client.take(), now=time.time(), signal=signal)
        answers = [*heard.answers]
        while heard.more:
            # No reading times out while its answers wait to be told.
            heard = self._collective.exchange([], now=time.time(), signal=max(signal, heard.signal))
            answers += heard.answers
        heard = replace(heard, answers=tuple(answers))
        self._journal.receive(heard.arrivals, heard.now)
        for answer in heard.answers:
            if answer.arrival.fate == UNTRUSTED:  # a word about a verdict that had its times before
                continue
            self._seen.answered(answer.arrival.key, answer.queue_ms / 1000, answer.judge_ms / 1000, heard.now)
        return heard

    def _keep_pace(self, step: int, now: float, waited_s: float) -> None:
        """Every rank is told the same times, and so asks for equally many samples."""
        if self._pace is None or self._decided_at is None:
            return
        change = self._pace.stepped(waited_s=waited_s, step_s=now - self._decided_at)
        if change is None:
            return
        ranks = self._collective.world.ranks
        before, after = change.before * ranks, change.after * ranks
        fewer = after < before
        self._tell(
            "warn" if fewer else "info",
            f"step {step}: {change.held_up} of the last {WINDOW} steps waited for the judge: from now on it"
            f" reads {after} answers of the policy a step, {'fewer' if fewer else 'more'} than the {before}"
            " before",
            {"samples_before": before, "samples": after},
        )

    def policy_rows(self, made_at: int) -> list[int]:
        """Rows of the batch K ahead whose prompts the policy answers at step `made_at`."""
        if self._pace is None:
            return []
        count = self._pace.samples * self._collective.world.ranks
        return list(dict.fromkeys(self._order.rows(made_at + self._k)[:count]))

    # --- ending ----------------------------------------------------------------------------

    def state(self, step: int) -> dict[str, Any]:
        return {
            "probe": None if self.critic is None else self.critic.state(self.controller.take_taught()),
            "controller": self._journal.checkpoint(step),
            "seen": self._seen.to_state(),
            "pace": None if self._pace is None else self._pace.to_state(),
            "unanswered": self.asking.unanswered(),
        }

    def close(self) -> None:
        self._oversight.ended(self._seen)
        self.client.close()


def _looking_ahead(method: Adaptive, batches: int) -> Adaptive:
    """With the target read so many batches ahead, if it is not further: then the readings before the first
    step hold the whole file."""
    return method.model_copy(
        update={
            "sources": tuple(
                source.model_copy(update={"look_ahead": max(source.look_ahead, batches)})
                if isinstance(source, TargetSource)
                else source
                for source in method.sources
            )
        }
    )
