"""What a run says of its judge: outages with their cause, withdrawn verdicts, and how old readings were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from shared.safety import Overdue, Staleness
from trainer.safety.controller import Controller
from trainer.safety.decision import Decision
from trainer.safety.seen import Seen

Tell = Callable[[Literal["info", "warn", "error"], str, dict[str, Any] | None], None]

EFFECT = {
    Overdue.PARK: "the job is checkpointed and waits for the judge",
    Overdue.FAIL_CLOSED: "what has no verdict trains at beta_max until readings resume",
    Overdue.HOLD: "the last average is held",
    Overdue.ABORT: "the job ends",
}


class Oversight:
    """Compares each step with the one before, and tells of what has changed."""

    def __init__(self, staleness: Staleness, controller: Controller, tell: Tell) -> None:
        self._staleness = staleness
        self._controller = controller
        self._tell = tell
        self._overdue = False
        self._withdrawn = (0, 0)
        self._other_kind = 0

    def resumed(self) -> None:
        """The counts go on from a checkpoint's."""
        self._withdrawn = self._counts()
        self._other_kind = self._controller.counts.other_kind

    def decided(self, step: int, decision: Decision, wait_s: float, trouble: str | None) -> None:
        if decision.overdue != self._overdue:
            self._overdue = decision.overdue
            self._tell_overdue(step, decision, wait_s, trouble)
        if self._counts() != self._withdrawn:
            self._tell_withdrawn(step)
        if (other := self._controller.counts.other_kind) != self._other_kind:
            told, self._other_kind = other - self._other_kind, other
            self._tell(
                "warn",
                f"step {step}: {told} scores are not of the kind that this job began with"
                f" ({self._controller.kind}) and count as failed: kinds are not on one scale",
                {"other_kind": told},
            )

    def cause(self, trouble: str | None) -> str:
        """Why there are no readings: what the client meets, else what the verdicts say."""
        if trouble:
            return trouble
        failing = sorted(self._controller.failing.items(), key=lambda item: (-item[1], item[0]))
        if not failing:
            return "The judge takes what it is asked, and no verdict has come in time."
        codes = ", ".join(f"{code} {count}" for code, count in failing)
        return f"The verdicts since readings were last fresh failed: {codes}."

    def ended(self, seen: Seen) -> None:
        report = seen.report()
        if not report["steps"]:
            return
        seconds = "" if report["mean_s"] is None else f", {report['mean_s']:.2f} s on average"
        self._tell(
            "info",
            f"the readings that {report['steps']} steps used were at most {report['max']} steps old{seconds};"
            f" {report['degraded_share']:.1%} of the steps trained past the bound",
            {"staleness": report, "verdicts": vars(self._controller.counts).copy()},
        )

    def _counts(self) -> tuple[int, int]:
        counts = self._controller.counts
        return counts.withdrawn, counts.withdrawn_late

    def _tell_overdue(self, step: int, decision: Decision, wait_s: float, trouble: str | None) -> None:
        if not decision.overdue:
            self._tell("info", f"step {step}: readings are in again; the bound holds", None)
            return
        policy = self._staleness.overdue
        cause = self.cause(trouble)
        self._tell(
            "warn",
            f"step {step}: the judge's readings are {decision.staleness} steps old, more than the"
            f" {self._staleness.max_staleness} allowed, after waiting {wait_s:.1f} s;"
            f" {policy.value}: {EFFECT[policy]}. {cause}",
            {"staleness": decision.staleness, "overdue": policy.value, "cause": cause},
        )

    def _tell_withdrawn(self, step: int) -> None:
        before, self._withdrawn = self._withdrawn, self._counts()
        unused, used = (now - then for now, then in zip(self._withdrawn, before, strict=True))
        self._tell(
            "warn",
            f"step {step}: the judge withdrew {unused + used} verdicts, since it failed its control pairs"
            f" after them: {unused} were not used, {used} were; the average has felt those, and their rows"
            " train at beta_max until they are read again",
            {"withdrawn_unused": unused, "withdrawn_used": used},
        )
