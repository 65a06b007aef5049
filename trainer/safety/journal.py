"""The controller with a log: a line for each call that changes it, and the calls made again from the lines.

The log holds all that the controller is told (what was asked, what came back, when, by rank 0's clock),
so `replay` needs no model, no judge and no clock. Floats survive JSON exactly: betas are compared bit
for bit.

    start        the settings, and the target scores that were had beforehand; each process begins with one
    restore      a checkpoint's state is taken up
    outage_over  a parked run goes on
    open         a reading and its items
    receive      verdicts, or a reading's time-out
    must_wait    whether a step must wait for more
    decide       a step's betas
    checkpoint   the state's fingerprint when it was saved
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.safety import Adaptive
from shared.wire import FailureCode, ScoreKind
from trainer.safety.combine import Foretold
from trainer.safety.controller import Controller
from trainer.safety.decision import Decision
from trainer.safety.ledger import Arrival, Failed, ItemKey, Scored, SourceName

Line = dict[str, Any]


class Journal:
    """One run's controller. What it decides is the controller's; see there.

    Args:
        write: is given each line; rank 0's goes to the run's log.
    """

    def __init__(self, method: Adaptive, known_scores: Mapping[int, float], write: Callable[[Line], None]):
        self.controller = Controller(method)
        self._write = write
        self._news = True
        scores = [list(item) for item in known_scores.items()]
        write({"op": "start", "method": method.model_dump(mode="json"), "scores": scores})
        self.controller.preset_targets(known_scores)

    def restore(self, state: dict[str, Any], *, t: int, now: float) -> None:
        self._write({"op": "restore", "t": t, "now": now, "state": state})
        self.controller.restore(state, now)

    def outage_over(self, t: int) -> int:
        self._write({"op": "outage_over", "t": t})
        return self.controller.outage_over(t)

    def open_reading(self, made_at: int, items: Sequence[tuple[SourceName, int]], now: float) -> None:
        self._write({"op": "open", "u": made_at, "items": [[s.value, r] for s, r in items], "now": now})
        self.controller.open_reading(made_at, items, now)

    def receive(self, arrivals: Sequence[Arrival], now: float) -> None:
        """Called at every exchange; only those that bring something are written."""
        if self.controller.receive(arrivals, now):
            told = [_arrival_to_json(arrival) for arrival in arrivals]
            self._write({"op": "receive", "now": now, "arrivals": told})
            self._news = True

    def must_wait(self, t: int, now: float) -> bool:
        waits = self.controller.must_wait(t, now)
        # While a step waits it asks many times a second; without news the answer changes nothing.
        if self._news or not waits:
            self._write({"op": "must_wait", "t": t, "now": now})
        self._news = not waits
        return waits

    def decide(self, t: int, rows: Sequence[int], foretold: Sequence[Foretold] | None = None) -> Decision:
        decision = self.controller.decide(t, rows, foretold)
        line = {"op": "decide", "t": t, "rows": list(rows), **_decision_to_json(decision)}
        if foretold is not None:
            line["foretold"] = [list(one) for one in foretold]
        self._write(line)
        return decision

    def checkpoint(self, t: int) -> dict[str, Any]:
        """The state after `t` steps, for the checkpoint."""
        state = self.controller.to_state()
        self._write({"op": "checkpoint", "t": t, "sha256": fingerprint(state)})
        return state


def fingerprint(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Difference:
    """The first place where the log and the rules part."""

    line: int
    """From 1."""
    step: int | None
    what: str
    """Such as `betas[3]`."""
    logged: Any
    recomputed: Any


@dataclass
class Replayed:
    decisions: int = 0
    """Steps decided, those that a resumed run repeated included."""
    betas: int = 0
    """Compared, bit for bit."""
    last_step: int | None = None
    resumed_at: list[int] = field(default_factory=list)
    torn_line: int | None = None
    """Number of a last line that was cut short: the run was killed while it wrote."""
    difference: Difference | None = None


def replay(lines: Iterable[bytes]) -> Replayed:
    """Makes every call of a log anew, up to the first difference."""
    found = Replayed()
    replayer = _Replayer(found)
    torn: tuple[int, str] | None = None
    for number, raw in enumerate(lines, start=1):
        if torn is not None:
            found.difference = Difference(
                torn[0], found.last_step, "a line that cannot be read", torn[1], None
            )
            return found
        try:
            call = json.loads(raw)
        except ValueError:
            torn = number, raw[:80].decode("utf-8", "replace")
            continue
        found.difference = replayer.make(number, call)
        if found.difference is not None:
            return found
    if torn is not None:
        found.torn_line = torn[0]
    return found


class _Replayer:
    def __init__(self, found: Replayed) -> None:
        self._found = found
        self._controller: Controller | None = None
        self._fingerprints: dict[int, set[str]] = {}
        """Of the states that were saved at each step: a stop saves once more, and a kill may lose that."""

    def make(self, line: int, call: Line) -> Difference | None:
        if call["op"] == "start":
            self._controller = Controller(Adaptive.model_validate(call["method"]))
            self._controller.preset_targets(dict(call["scores"]))
            return None
        controller = self._controller
        if controller is None:
            return Difference(line, None, "op", call["op"], "start")
        match call["op"]:
            case "restore":
                return self._restore(line, controller, call)
            case "outage_over":
                controller.outage_over(call["t"])
            case "open":
                items = [(SourceName(source), row) for source, row in call["items"]]
                controller.open_reading(call["u"], items, call["now"])
            case "receive":
                controller.receive([_arrival_from_json(raw) for raw in call["arrivals"]], call["now"])
            case "must_wait":
                controller.must_wait(call["t"], call["now"])
            case "decide":
                return self._decide(line, controller, call)
            case "checkpoint":
                mine = fingerprint(controller.to_state())
                self._fingerprints.setdefault(call["t"], set()).add(mine)
                if mine != call["sha256"]:
                    return Difference(line, call["t"], "the state at the checkpoint", call["sha256"], mine)
            case other:
                return Difference(line, self._found.last_step, "op", other, None)
        return None

    def _restore(self, line: int, controller: Controller, call: Line) -> Difference | None:
        """What was taken up must be what was saved."""
        taken, saved = fingerprint(call["state"]), self._fingerprints.get(call["t"], set())
        if taken not in saved:
            return Difference(line, call["t"], "the state that was resumed", taken, sorted(saved))
        controller.restore(call["state"], call["now"])
        self._found.resumed_at.append(call["t"])
        return None

    def _decide(self, line: int, controller: Controller, call: Line) -> Difference | None:
        told = call.get("foretold")
        foretold = None if told is None else [Foretold(*one) for one in told]
        decision = _decision_to_json(controller.decide(call["t"], call["rows"], foretold))
        for name, value in decision.items():
            if call[name] == value:
                continue
            if name == "betas" and len(call[name]) == len(value):
                at = next(i for i, beta in enumerate(value) if beta != call[name][i])
                return Difference(line, call["t"], f"betas[{at}]", call[name][at], value[at])
            return Difference(line, call["t"], name, call[name], value)
        self._found.decisions += 1
        self._found.betas += len(decision["betas"])
        self._found.last_step = call["t"]
        return None


def _decision_to_json(decision: Decision) -> Line:
    dropped = [at for at, kept in enumerate(decision.kept) if not kept]
    return {
        **({"dropped": dropped} if dropped else {}),
        "action": decision.action.value,
        "betas": list(decision.betas),
        "risk": decision.risk,
        "staleness": decision.staleness,
        "overdue": decision.overdue,
    }


def _arrival_to_json(arrival: Arrival) -> list[Any]:
    key, fate = arrival
    told = [fate.score, fate.kind] if isinstance(fate, Scored) else [fate.code]
    return [key.made_at, key.source, key.row, *told]


def _arrival_from_json(raw: list[Any]) -> Arrival:
    made_at, source, row, *told = raw
    key = ItemKey(made_at, SourceName(source), row)
    match told:
        case [str(code)]:
            return Arrival(key, Failed(FailureCode(code)))
        case [score, kind]:
            return Arrival(key, Scored(float(score), None if kind is None else ScoreKind(kind)))
    raise ValueError(f"{raw!r} is no arrival")
