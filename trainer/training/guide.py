"""Where a step's betas come from: a constant, or the judge by way of the controller."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from shared.errors import JudgeRefusal
from shared.jobs import Adaptive, PolicySource, TargetSource
from shared.wire import ChatMessage
from trainer.data.rows import ChatRow
from trainer.safety.controller import Action, Basis, Controller
from trainer.safety.journal import Journal
from trainer.safety.judge_client import JudgeClient, NoJudge
from trainer.safety.ledger import ItemKey, SourceName
from trainer.safety.pace import WINDOW, pace_of
from trainer.safety.probe.trust import Standing
from trainer.safety.question import Question
from trainer.safety.reading import UNTRUSTED
from trainer.safety.seen import Age, Seen
from trainer.training.distributed import Collective, Exchange, Signal
from trainer.training.order import DataOrder, rank_share
from trainer.training.oversight import Oversight, Tell

if TYPE_CHECKING:
    from trainer.training.critic import Critic
    from trainer.training.data import Batch

POLL_S = 0.02
"""Between two exchanges while a step waits."""

SCAN_ROWS = 512
"""Rows that are with the judge at once, at least, while it reads the whole file."""


@dataclass(frozen=True)
class Guidance:
    """What a step does, the same on every rank. `betas` follow the step's rows."""

    action: Action
    betas: tuple[float, ...]
    stop: bool
    risk: float
    staleness: int | None
    overdue: bool
    wait_s: float
    generate_s: float
    bases: dict[str, int]
    samples: int = 0
    """Answers of the policy that this step had judged, over all ranks."""
    kept: tuple[bool, ...] | None = None
    """Which rows train; None: all."""
    age: Age = field(default_factory=Age)
    probe: Standing = field(default_factory=Standing)


def _stopped() -> Guidance:
    """The run is asked to end before this step: nothing is decided, so a resumed run decides it once."""
    return Guidance(
        action=Action.TRAIN,
        betas=(),
        stop=True,
        risk=0.0,
        staleness=None,
        overdue=False,
        wait_s=0.0,
        generate_s=0.0,
        bases={},
    )


class Speaker(StrEnum):
    POLICY = "policy"  # as it stands
    REFERENCE = "reference"


class Sampler(Protocol):
    """Answers prompts. Every rank must call it equally often, each with its own prompts.

    A step waits for it (`generate_s`), and for nothing else of it: what a reading asks is declared before,
    and the answers' questions may reach the judge at any time until the reading's deadline. So a sampler off
    the critical path would be given the prompts at `JudgedBeta._ask_answers`, and hand in the questions when
    its copy of the policy has answered.
    """

    def sample(
        self, prompts: Sequence[Sequence[ChatMessage]], step: int, speaker: Speaker = Speaker.POLICY
    ) -> list[str]: ...


class Guide(Protocol):
    def start(self, step: int) -> None:
        """Before the model is loaded: sends what can be sent without it."""

    def guide(self, step: int, rows: tuple[int, ...]) -> Guidance: ...

    def state(self, step: int) -> dict[str, Any] | None:
        """For the checkpoint after `step` steps; differs from rank to rank."""

    def close(self) -> None: ...


class ConstantBeta:
    """SFT (0) and fixed KL."""

    def __init__(self, beta: float, collective: Collective, stopping: Callable[[], bool]) -> None:
        self._beta = beta
        self._collective = collective
        self._stopping = stopping

    def start(self, step: int) -> None:
        """Nothing to send."""

    def guide(self, step: int, rows: tuple[int, ...]) -> Guidance:
        signal = Signal.STOP if self._stopping() else Signal.GO_ON
        heard = self._collective.exchange([], now=time.monotonic(), signal=signal)
        return Guidance(
            action=Action.TRAIN,
            betas=(self._beta,) * len(rows),
            stop=heard.signal is Signal.STOP,
            risk=self._beta,
            staleness=None,
            overdue=False,
            wait_s=0.0,
            generate_s=0.0,
            bases={},
        )

    ahead = None
    """No probe asks the reference before the step."""

    def state(self, step: int) -> None:
        return None

    def close(self) -> None:
        """Nothing is open."""


class JudgedBeta:
    """Asks the judge ahead of the steps, and lets the controller decide.

    Args:
        rows: the training file; every rank holds all of it, and asks about its own share.
        sampler: set before the first `guide` if a policy source is configured.
        critic: likewise with a probe.
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
        self.sampler: Sampler | None = None
        self.critic: Critic | None = None
        self._target = next((s for s in method.sources if isinstance(s, TargetSource)), None)
        policy = next((s for s in method.sources if isinstance(s, PolicySource)), None)
        self._reads_reference = method.reads_reference
        ranks = collective.world.ranks
        self._pace = None if policy is None else pace_of(policy, method.staleness, ranks)
        self._decided_at: float | None = None
        """When the step before was decided, by rank 0's clock."""
        self._k = method.staleness.max_staleness
        self._rows = rows
        self._order = order
        self._collective = collective
        self._stopping = stopping
        self._generate_s = 0.0
        self._tell = tell
        self._told = 0
        """Rows of the scan."""
        self._window = max(look_ahead, -(-SCAN_ROWS // order.batch_size))
        """Readings before the first step that are out at once."""
        self._asked: dict[ItemKey, Question] = {}
        """This rank's questions of readings that are not folded yet."""

    @property
    def controller(self) -> Controller:
        return self._journal.controller

    # --- beginning -------------------------------------------------------------------------

    def start(self, step: int) -> None:
        """Scans the target scores of the first batches, so that the judge works while the model loads."""
        now = self._exchange().now
        self._open_ahead(min(step, self.controller.first_reading + self._window), now)

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
        window, scored, unheard = self._window, counts.scored, 0
        heard = self._exchange()
        for made_at in range(max(first, self.controller.cursor + 1), 0):
            self._open_ahead(min(0, made_at + window), heard.now)
            # As step made_at + K would have it: its reading is folded, and so are those before it.
            while self._may_go_on(heard) and self._journal.must_wait(made_at + self._k, heard.now):
                self.client.wait_for_news(POLL_S)
                heard = self._exchange()
            if heard.signal is Signal.STOP:
                return
            unheard = 0 if counts.scored > scored else unheard + 1
            scored = counts.scored
            if counts.timeouts and unheard >= self._window:
                # The judge is away: the rest waits once, together.
                window = -first
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
            self._ask([Question.from_json(raw) for raw in state["unanswered"]])
            return
        first = self._journal.outage_over(step)
        self.client.outage_over(self.controller.outages, first)
        self._reopen = range(first, step)

    _reopen: range = range(0)
    """Readings to be made anew once the model can speak."""

    # --- one step --------------------------------------------------------------------------

    def guide(self, step: int, rows: tuple[int, ...]) -> Guidance:
        self._generate_s = 0.0
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
                return _stopped()
            if not self._journal.must_wait(step, heard.now):
                break
            if began_waiting is None:
                began_waiting, waits_since = time.monotonic(), heard.now
            self.client.wait_for_news(POLL_S)
        waited = 0.0 if began_waiting is None else time.monotonic() - began_waiting
        self._asked = {k: q for k, q in self._asked.items() if k.made_at > self.controller.cursor}
        foretold = None
        if self.critic is not None:
            foretold = self.critic.foretell(self.controller.take_taught(), rows)
        decision = self._journal.decide(step, rows, foretold)
        self._oversight.decided(step, decision, waited, self.client.trouble or self.client.state)
        if decision.action is Action.TRAIN and not decision.overdue:
            self._keep_pace(step, heard.now, 0.0 if waits_since is None else heard.now - waits_since)
        self._decided_at = heard.now
        age = self._seen.stepped(
            self.controller, decision, heard.now, generate_s=self._generate_s, wait_s=waited
        )
        return Guidance(
            action=decision.action,
            betas=decision.betas,
            stop=False,
            risk=decision.risk,
            staleness=decision.staleness,
            overdue=decision.overdue,
            wait_s=waited,
            generate_s=self._generate_s,
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
        self._journal.receive(heard.arrivals, heard.now)
        for answer in heard.answers:
            if answer.arrival.fate == UNTRUSTED:  # a word about a verdict that had its times before
                continue
            self._seen.answered(answer.arrival.key, answer.queue_ms / 1000, answer.judge_ms / 1000, heard.now)
        return heard

    def _ask(self, questions: Sequence[Question]) -> None:
        self._asked.update((question.key, question) for question in questions)
        self.client.submit(questions)

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

    def _open(self, made_at: int, policy_rows: Sequence[int], now: float) -> None:
        target_rows: list[int] = []
        if self._target is not None:
            target_rows = list(dict.fromkeys(self._order.rows(made_at + self._target.look_ahead)))
        reference_rows = [
            row
            for row in (policy_rows if self._reads_reference else [])
            if self.controller.needs_asking(SourceName.REFERENCE, row)
        ]
        items = [(SourceName.TARGET, row) for row in target_rows]
        items += [(SourceName.POLICY, row) for row in policy_rows]
        items += [(SourceName.REFERENCE, row) for row in reference_rows]
        asked = [row for row in target_rows if self.controller.needs_asking(SourceName.TARGET, row)]
        self._journal.open_reading(made_at, items, now)
        self._seen.opened(made_at, now)
        world = self._collective.world
        questions = []
        for row in rank_share(tuple(asked), world.rank, world.ranks):
            prompt, response = last_turn(self._rows[row])
            questions.append(Question(ItemKey(made_at, SourceName.TARGET, row), prompt, response))
        # The target's questions need no generation: let the judge begin on them.
        self._ask(questions)
        self._ask_answers(made_at, policy_rows, Speaker.POLICY)
        self._ask_answers(made_at, reference_rows, Speaker.REFERENCE)

    def _ask_answers(self, made_at: int, rows: Sequence[int], speaker: Speaker) -> None:
        """Has the rows' prompts answered, and the answers judged. `rows` are all ranks'."""
        if not rows:
            return
        if self.sampler is None:
            raise ValueError("a policy source is configured but no sampler was set")
        world = self._collective.world
        mine = rank_share(tuple(rows), world.rank, world.ranks)
        prompts = [last_turn(self._rows[row])[0] for row in mine]
        began = time.monotonic()
        answers = self.sampler.sample(prompts, made_at, speaker)
        self._generate_s += time.monotonic() - began
        source = SourceName(speaker)
        self._ask(
            [
                Question(ItemKey(made_at, source, row), prompt, answer)
                for row, prompt, answer in zip(mine, prompts, answers, strict=True)
            ]
        )

    # --- ending ----------------------------------------------------------------------------

    def state(self, step: int) -> dict[str, Any]:
        return {
            "probe": None if self.critic is None else self.critic.state(self.controller.take_taught()),
            "controller": self._journal.checkpoint(step),
            "seen": self._seen.to_state(),
            "pace": None if self._pace is None else self._pace.to_state(),
            "unanswered": [
                question.to_json()
                for key, question in self._asked.items()
                if self.controller.is_outstanding(key)
            ],
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


def last_turn(row: ChatRow) -> tuple[tuple[ChatMessage, ...], str]:
    """A row as the judge reads it: the turns before the last assistant turn, and that turn."""
    last = max(index for index, turn in enumerate(row.messages) if turn.role == "assistant")
    return tuple(row.messages[:last]), row.messages[last].content
