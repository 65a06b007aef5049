"""The controller's rules one by one. Their interplay is in test_staleness_exhaustive.py."""

from __future__ import annotations

import json
import random

import pytest

from shared.safety import Adaptive, Clock, Overdue, PolicySource, ReferenceSource, Staleness, TargetSource
from shared.wire import FailureCode
from trainer.safety.controller import Controller
from trainer.safety.decision import Action, Basis
from trainer.safety.ledger import Arrival, Failed, Fate, ItemKey, Scored, SourceName

TARGET, POLICY, REFERENCE = SourceName.TARGET, SourceName.POLICY, SourceName.REFERENCE


def adaptive(
    *,
    k: int = 2,
    look_ahead: int | None = None,
    policy: bool = True,
    reference: bool = False,
    granularity: str = "example",
    combine: str = "max",
    **staleness: object,
) -> Adaptive:
    sources: list[object] = [PolicySource()] if policy else []
    if reference:
        sources.append(ReferenceSource())
    if look_ahead is not None:
        sources.append(TargetSource(look_ahead=look_ahead))
    return Adaptive.model_validate(
        {
            "sources": sources,
            "granularity": granularity,
            "combine": combine,
            "staleness": Staleness.model_validate({"max_staleness": k, "deadline_s": 10, **staleness}),
        }
    )


def arrival(u: int, source: SourceName, row: int, fate: Fate) -> Arrival:
    return Arrival(ItemKey(u, source, row), fate)


FAILED = Failed(FailureCode.SERVER_ERROR)


def test_nothing_trains_freely_before_something_has_looked() -> None:
    controller = Controller(adaptive())
    controller.open_reading(0, [(POLICY, 0)], now=0)
    assert not controller.must_wait(0, now=0)
    decision = controller.decide(0, [5])
    assert decision.betas == (1.0,)
    assert decision.bases == (Basis.AVERAGE,)


def test_risk_rises_fast_and_falls_slowly() -> None:
    controller = Controller(adaptive(k=0))
    for t, (score, expected) in enumerate([(0.0, 0.95), (1.0, 0.985), (0.0, 0.93575)]):
        controller.open_reading(t, [(POLICY, t)], now=t)
        controller.receive([arrival(t, POLICY, t, Scored(score))], now=t)
        assert not controller.must_wait(t, now=t)
        assert controller.decide(t, [99]).risk == pytest.approx(expected)


def test_a_gap_of_n_steps_weighs_as_n_readings() -> None:
    often, once = Controller(adaptive(k=4)), Controller(adaptive(k=4))
    for t in range(4):
        often.open_reading(t, [(POLICY, 0)], now=t)
        often.receive([arrival(t, POLICY, 0, Scored(0.2))], now=t)
        once.open_reading(t, [(POLICY, 0)] if t in (0, 3) else [], now=t)
        if t in (0, 3):
            once.receive([arrival(t, POLICY, 0, Scored(0.2))], now=t)
        assert not often.must_wait(t, now=t)
        assert not once.must_wait(t, now=t)
    assert once.ema == pytest.approx(often.ema, abs=1e-12)


@pytest.mark.parametrize(("combine", "own"), [("max", (0.4, 0.6)), ("mean", (0.25, 0.45))])
def test_an_example_takes_its_own_readings_combined(combine: str, own: tuple[float, ...]) -> None:
    controller = Controller(adaptive(k=1, look_ahead=1, combine=combine))
    controller.open_reading(-1, [(TARGET, 0), (TARGET, 1)], now=0)
    controller.receive([arrival(-1, TARGET, 0, Scored(0.1)), arrival(-1, TARGET, 1, Scored(0.6))], now=0)
    controller.open_reading(0, [(POLICY, 0), (POLICY, 1)], now=0)
    controller.receive([arrival(0, POLICY, 0, Scored(0.4)), arrival(0, POLICY, 1, Scored(0.3))], now=0)
    assert not controller.must_wait(0, now=0)
    assert controller.decide(0, [0, 1]).betas == pytest.approx(tuple(0.1 + 0.9 * s for s in own))


def test_of_a_policy_reading_only_what_exceeds_the_references_counts() -> None:
    controller = Controller(adaptive(k=1, reference=True))
    items = [(source, row) for row in (0, 1, 2) for source in (POLICY, REFERENCE)]
    controller.open_reading(0, items, now=0)
    told = {
        (POLICY, 0): 0.75,
        (POLICY, 1): 0.125,
        (POLICY, 2): 0.5,
        (REFERENCE, 0): 0.25,
        (REFERENCE, 1): 0.5,
    }
    fates: dict[tuple[SourceName, int], Fate] = {item: Scored(score) for item, score in told.items()}
    fates[REFERENCE, 2] = FAILED
    controller.receive([arrival(0, *item, fate) for item, fate in fates.items()], now=0)
    assert not controller.must_wait(0, now=0)
    drift = (0.5, 0.0, 0.5)  # of row 2 all of it counts: what its reference says has not been read
    assert controller.decide(0, [0, 1, 2]).betas == pytest.approx(tuple(0.1 + 0.9 * d for d in drift))
    assert controller.ema == pytest.approx(1 + 0.05 * (sum(drift) / 3 - 1)), "nor does the average feel more"
    assert not controller.needs_asking(REFERENCE, 0)
    assert controller.needs_asking(REFERENCE, 2), "a failed one is asked again"
    assert controller.needs_asking(POLICY, 0)


def test_a_reference_reading_is_no_reading_of_the_row() -> None:
    controller = Controller(adaptive(k=1, reference=True))
    controller.open_reading(0, [(POLICY, 0), (REFERENCE, 0)], now=0)
    controller.receive([arrival(0, POLICY, 0, FAILED), arrival(0, REFERENCE, 0, Scored(0.0))], now=0)
    assert not controller.must_wait(0, now=0)
    decision = controller.decide(0, [0])
    assert (decision.betas, decision.bases) == ((1.0,), (Basis.AVERAGE,))
    assert controller.frontier == -1, "nor is it news of the policy"


def test_the_reference_is_of_use_only_beside_the_policy() -> None:
    with pytest.raises(ValueError, match="'reference' is subtracted from what 'policy' reads"):
        adaptive(policy=False, look_ahead=2, reference=True)


def test_a_policy_reading_older_than_k_counts_no_more_but_a_target_reading_does() -> None:
    controller = Controller(adaptive(k=1, look_ahead=1))
    controller.open_reading(-1, [(TARGET, 7)], now=0)
    controller.receive([arrival(-1, TARGET, 7, Scored(0.0))], now=0)
    for t in range(3):
        items = [(POLICY, 7)] if t == 0 else [(POLICY, 8)]
        controller.open_reading(t, items, now=t)
        controller.receive([arrival(t, POLICY, items[0][1], Scored(0.9))], now=t)
        assert not controller.must_wait(t, now=t)
        own = 0.9 if t <= 1 else 0.0
        assert controller.decide(t, [7]).betas[0] == pytest.approx(0.1 + 0.9 * own)


def test_a_step_waits_for_the_scan_of_its_own_rows() -> None:
    """Before step K nothing is stale by the frontier's word, but the target readings are due."""
    controller = Controller(adaptive(k=2, look_ahead=2, policy=False))
    for u in (-2, -1):
        controller.open_reading(u, [(TARGET, u + 2)], now=0)
    controller.open_reading(0, [(TARGET, 2)], now=0)
    assert controller.must_wait(0, now=0)
    controller.receive([arrival(-2, TARGET, 0, Scored(0.5))], now=1)
    assert not controller.must_wait(0, now=1)
    assert controller.decide(0, [0]).bases == (Basis.OWN,)


def test_a_row_whose_target_failed_trains_at_beta_max_and_is_counted() -> None:
    controller = Controller(adaptive(k=1, look_ahead=1))
    controller.open_reading(-1, [(TARGET, 0), (TARGET, 1), (TARGET, 2)], now=0)
    controller.receive(
        [arrival(-1, TARGET, r, Scored(0.0)) for r in (0, 1)] + [arrival(-1, TARGET, 2, FAILED)], now=0
    )
    controller.open_reading(0, [(POLICY, 2)], now=0)
    # That what the policy says about the row is harmless does not make the row harmless.
    controller.receive([arrival(0, POLICY, 2, Scored(0.0))], now=0)
    assert not controller.must_wait(0, now=0)
    decision = controller.decide(0, [0, 2])
    assert decision.betas == pytest.approx((0.1, 1.0))
    assert decision.bases == (Basis.OWN, Basis.CLOSED)
    assert decision.unread == 1
    assert not decision.overdue


def test_a_judge_that_answers_only_errors_does_not_look_fresh() -> None:
    controller = Controller(adaptive(k=1, overdue=Overdue.FAIL_CLOSED))
    for t in range(4):
        controller.open_reading(t, [(POLICY, 0), (POLICY, 1), (POLICY, 2)], now=t)
        # One of three is below min_scored.
        controller.receive(
            [
                arrival(t, POLICY, 0, Scored(0.0)),
                arrival(t, POLICY, 1, FAILED),
                arrival(t, POLICY, 2, FAILED),
            ],
            now=t,
        )
        controller.must_wait(t, now=t)
    decision = controller.decide(3, [9])
    assert controller.cursor == 3
    assert decision.staleness == 4
    assert decision.overdue
    assert decision.bases == (Basis.CLOSED,)


@pytest.mark.parametrize(
    ("policy", "action", "basis"),
    [
        (Overdue.PARK, Action.PARK, Basis.CLOSED),
        (Overdue.FAIL_CLOSED, Action.TRAIN, Basis.CLOSED),
        (Overdue.HOLD, Action.TRAIN, Basis.HELD),
        (Overdue.ABORT, Action.ABORT, Basis.CLOSED),
    ],
)
def test_overdue_policies(policy: Overdue, action: Action, basis: Basis) -> None:
    controller = Controller(adaptive(k=0, overdue=policy))
    controller.open_reading(0, [(POLICY, 0)], now=0)
    assert controller.must_wait(0, now=0)
    controller.receive([], now=10)
    assert not controller.must_wait(0, now=10)
    decision = controller.decide(0, [0])
    assert (decision.action, decision.bases) == (action, (basis,))
    assert controller.counts.timeouts == 1


def test_first_verdict_wins_and_late_ones_are_dropped_and_counted() -> None:
    controller = Controller(adaptive(k=2))
    controller.open_reading(0, [(POLICY, 0), (POLICY, 1)], now=0)
    controller.receive([arrival(0, POLICY, 0, Scored(0.3)), arrival(0, POLICY, 0, Scored(0.9))], now=1)
    assert controller.counts.duplicate == 1
    controller.receive([], now=11)
    controller.receive([arrival(0, POLICY, 1, Scored(0.9))], now=12)
    assert controller.counts.late == 1
    assert not controller.must_wait(0, now=12)
    controller.receive([arrival(0, POLICY, 1, Scored(0.9)), arrival(5, POLICY, 1, Scored(0.9))], now=12)
    assert (controller.counts.late, controller.counts.unknown) == (2, 1)
    assert controller.ledger.policy[0].score == 0.3
    assert 1 not in controller.ledger.policy


def test_a_target_score_is_kept_over_epochs_and_not_asked_again() -> None:
    controller = Controller(adaptive(k=1, look_ahead=1, policy=False))
    controller.open_reading(-1, [(TARGET, 0)], now=0)
    controller.receive([arrival(-1, TARGET, 0, Scored(0.8))], now=0)
    controller.open_reading(0, [(TARGET, 1)], now=0)
    controller.receive([arrival(0, TARGET, 1, FAILED)], now=0)
    assert not controller.must_wait(0, now=0)
    assert not controller.needs_asking(TARGET, 0)
    assert controller.needs_asking(TARGET, 1), "a failed row is asked again"
    controller.open_reading(1, [(TARGET, 0)], now=0)
    assert not controller.must_wait(1, now=0)
    assert controller.frontier == 1, "a cached score resolves its reading at once"


def test_cached_scores_do_not_make_a_dead_judge_look_alive() -> None:
    """In later epochs every target score is known; if no policy answer is judged, the judge is away."""
    controller = Controller(adaptive(k=1, look_ahead=1, overdue=Overdue.FAIL_CLOSED))
    controller.open_reading(-1, [(TARGET, row) for row in range(8)], now=0)
    controller.receive([arrival(-1, TARGET, row, Scored(0.0)) for row in range(8)], now=0)
    for t in range(3):
        controller.open_reading(t, [*((TARGET, row) for row in range(8)), (POLICY, t)], now=t)
        controller.receive([arrival(t, POLICY, t, FAILED)], now=t)
        controller.must_wait(t, now=t)
    decision = controller.decide(2, [0])
    assert (decision.staleness, decision.overdue) == (3, True)


def test_a_run_that_nothing_ever_read_is_unread_however_short() -> None:
    controller = Controller(adaptive(k=4))
    for t in range(3):
        controller.open_reading(t, [(POLICY, t)], now=t)
        assert not controller.must_wait(t, now=t)
        assert not controller.decide(t, [t]).overdue
    assert controller.unread_fraction == 1.0


@pytest.mark.parametrize("clock", list(Clock))
def test_state_survives_json_and_continues_alike(clock: Clock) -> None:
    """Killed after any step and restored, the betas are those of the run that went on."""
    method = adaptive(k=2, look_ahead=3, clock=clock)
    rng = random.Random(5)

    def step(controller: Controller, t: int, scores: list[float]) -> tuple[float, ...]:
        items = [(TARGET, t + 3), (POLICY, t + 2)]
        controller.open_reading(t, items, now=t)
        controller.receive(
            [
                arrival(t - 1, s, r, Scored(x))
                for (s, r), x in zip([(TARGET, t + 2), (POLICY, t + 1)], scores, strict=True)
            ],
            now=t,
        )
        controller.must_wait(t, now=t)
        return controller.decide(t, [t, t + 1]).betas

    whole = Controller(method)
    for u in range(-3, 0):
        whole.open_reading(u, [(TARGET, u + 3)], now=0)
        whole.receive([arrival(u, TARGET, u + 3, Scored(rng.random()))], now=0)
    for t in range(12):
        state = json.loads(json.dumps(whole.to_state()))
        scores = [rng.random(), rng.random()]
        restored = Controller(method)
        restored.restore(state, now=t)
        assert step(restored, t, scores) == step(whole, t, scores)
        assert restored.to_state() == whole.to_state()


def test_after_an_outage_the_readings_are_asked_anew() -> None:
    controller = Controller(adaptive(k=1, overdue=Overdue.PARK, clock=Clock.FIXED_LAG))
    for t in range(3):
        controller.open_reading(t, [(POLICY, t + 1)], now=t)
        if t == 0:
            controller.receive([arrival(0, POLICY, 1, Scored(0.2))], now=0)
        controller.must_wait(t, now=t)
        controller.decide(t, [t])
    controller.receive([], now=50)
    controller.must_wait(2, now=50)
    assert controller.decide(2, [2]).action is Action.PARK
    again = Controller(controller.method)
    again.restore(json.loads(json.dumps(controller.to_state())), now=100)
    first = again.outage_over(2)
    assert first == 1
    for u in (1, 2):
        again.open_reading(u, [(POLICY, u + 1)], now=100)
        again.receive([arrival(u, POLICY, u + 1, Scored(0.1))], now=100)
    assert not again.must_wait(2, now=100)
    decision = again.decide(2, [2])
    assert (decision.action, decision.bases) == (Action.TRAIN, (Basis.OWN,))


def test_opening_a_reading_twice_is_an_error() -> None:
    controller = Controller(adaptive())
    controller.open_reading(0, [(POLICY, 0)], now=0)
    with pytest.raises(ValueError, match="reading 0 was opened already"):
        controller.open_reading(0, [(POLICY, 0)], now=0)
