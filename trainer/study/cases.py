"""What is studied, as data: cases that differ from the default in one thing, grouped by the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.errors import ConfigError
from shared.safety import (
    Adaptive,
    Clock,
    Method,
    PolicySource,
    ProbeSource,
    ReferenceSource,
    Sft,
    Source,
    Staleness,
    TargetSource,
)
from trainer.demo.world import RUBRIC

TARGET = TargetSource(look_ahead=16)
POLICY = PolicySource(samples_per_step=4, max_new_tokens=32)
HARMFUL = 0.1


@dataclass(frozen=True)
class Case:
    """One way to guard a run, and what it has to deal with."""

    group: str
    """The question that it belongs to."""
    name: str
    """Within the group."""
    method: Method
    harmful: float = HARMFUL
    """Share of the rows that are harmful."""
    missed: float = 0.0
    """Share of what is harmful that the judge calls harmless, drawn by text."""
    alarms: float = 0.0
    """Share of what is harmless that the judge calls harmful, drawn by text."""

    @property
    def key(self) -> str:
        return f"{self.group}/{self.name}"


def adaptive(sources: Sequence[Source] = (TARGET, POLICY), **changes: object) -> Adaptive:
    """The default but for what is named. `staleness`'s own fields may be named too.

    Folded at a fixed lag, so that a result is a function of case and seed, and not of the machine's load.
    """
    own = set(Adaptive.model_fields)
    staleness: dict[str, object] = {"clock": Clock.FIXED_LAG}
    staleness |= {name: value for name, value in changes.items() if name not in own}
    method = {name: value for name, value in changes.items() if name in own}
    return Adaptive.model_validate(
        {
            "sources": [source.model_dump() for source in sources],
            "rubric": RUBRIC,
            "staleness": Staleness.model_validate(staleness).model_dump(),
            **method,
        }
    )


def _sources() -> list[Case]:
    kinds: dict[str, tuple[Source, ...]] = {
        "target": (TARGET,),
        "policy": (POLICY,),
        "target + policy": (TARGET, POLICY),
        "policy + reference": (POLICY, ReferenceSource()),
        "target + policy + reference": (TARGET, POLICY, ReferenceSource()),
    }
    found = [Case("sources", name, adaptive(sources)) for name, sources in kinds.items()]
    return [*found, Case("sources", "target + policy, mean", adaptive(combine="mean"))]


def _gains() -> list[Case]:
    """Of the feedback through the policy alone, where nothing else holds it."""
    pairs = ((0.7, 0.05), (0.7, 0.3), (0.7, 0.7), (0.3, 0.3), (1.0, 1.0))
    return [
        Case(
            "gains",
            f"up {up:g}, down {down:g}",
            adaptive((POLICY,), granularity="batch", gain_up=up, gain_down=down),
        )
        for up, down in pairs
    ]


def _staleness() -> list[Case]:
    return [Case("staleness", f"K {k}", adaptive((POLICY,), max_staleness=k)) for k in (0, 2, 4, 8, 16)]


def _granularity() -> list[Case]:
    return [
        Case("granularity", f"{grain}, {share:.0%}", adaptive(granularity=grain), harmful=share)
        for share in (0.1, 0.3)
        for grain in ("example", "batch")
    ]


def _rope() -> list[Case]:
    pairs = ((0.1, 0.5), (0.1, 0.8), (0.1, 1.0), (0.0, 1.0), (0.3, 1.0))
    return [
        Case("rope", f"beta {low:g} to {high:g}", adaptive(beta_min=low, beta_max=high))
        for low, high in pairs
    ]


def _harmful() -> list[Case]:
    shares = (0.01, 0.05, 0.1, 0.3)
    methods: dict[str, Method] = {"plain": Sft(), "adaptive": adaptive()}
    return [
        Case("harmful", f"{name}, {share:.0%}", method, harmful=share)
        for name, method in methods.items()
        for share in shares
    ]


def _missed() -> list[Case]:
    return [
        Case("missed", f"{missed:.0%} of {share:.0%}", adaptive(), harmful=share, missed=missed)
        for share in (0.1, 0.3)
        for missed in (0.0, 0.1, 0.3, 0.5, 0.8)
    ]


PROBE = ProbeSource()
ONLINE = ProbeSource(scan=False)
NEAR = TargetSource(look_ahead=4)
"""No further ahead than K = 4: a row's verdict is in, at the latest, when it trains."""


def _taught() -> list[Case]:
    """The judge blind to a share of the harm: alone, with a probe that it teaches, and as a filter."""
    methods: dict[str, Method] = {
        "judge": adaptive((TARGET,)),
        "judge + probe": adaptive((TARGET, PROBE)),
        "judge + probe, online": adaptive((NEAR, ONLINE)),
        "dropped by either": adaptive((TARGET, PROBE), flagged="drop", beta_min=0.0, beta_max=0.0),
    }
    return [
        Case("taught", f"{name}, blind to {missed:.0%} of {share:.0%}", method, share, missed)
        for share in (0.3, 0.1, 0.01, 0.05, 1.0)
        for missed in (0.0, 0.1, 0.3, 0.5, 0.8)
        for name, method in methods.items()
    ]


def _taught_alarms() -> list[Case]:
    return [
        Case("taught-alarms", f"{name}, {alarms:.0%} alarms at {share:.0%}", method, share, 0.3, alarms)
        for share in (0.1, 0.3)
        for alarms in (0.02, 0.05, 0.1)
        for name, method in {"judge": adaptive((TARGET,)), "probe": adaptive((TARGET, PROBE))}.items()
    ]


def _taught_reads() -> list[Case]:
    """What the probe reads of the reference."""
    reads = {
        "all blocks": PROBE,
        "embeddings": ProbeSource(layers=(0,)),
        **{f"block {layer}": ProbeSource(layers=(layer,)) for layer in (1, 2, 3, 4)},
        "all blocks, mean": ProbeSource(pooling="mean"),
    }
    return [
        Case("taught-reads", f"{name}, blind to {missed:.0%}", adaptive((TARGET, probe)), 0.3, missed)
        for missed in (0.5, 0.8)
        for name, probe in reads.items()
    ]


def _taught_delay() -> list[Case]:
    """Online, with verdicts that are folded so many steps after they were asked for. A row's own is asked
    for as many steps ahead: what is late is what the probe learns."""
    return [
        Case(
            "taught-delay",
            f"{k} steps",
            adaptive((TargetSource(look_ahead=k), ONLINE), max_staleness=k),
            0.3,
            0.3,
        )
        for k in (0, 2, 4, 8, 16)
    ]


GROUPS = {
    "sources": ("Where the score comes from", _sources),
    "gains": ("How fast the average of the policy's own answers moves", _gains),
    "staleness": ("How old the reading of the policy's own answers may be", _staleness),
    "granularity": ("Each row its own beta, or one for the batch", _granularity),
    "rope": ("Between which betas", _rope),
    "harmful": ("How many rows are harmful", _harmful),
    "missed": ("How many harmful rows the judge misses", _missed),
    "taught": ("A judge that misses harm, and the probe that it teaches", _taught),
    "taught-alarms": ("How often the judge that teaches the probe raises a false alarm", _taught_alarms),
    "taught-delay": ("How late the verdicts are that teach the probe", _taught_delay),
    "taught-reads": ("What the taught probe reads of the reference", _taught_reads),
}
"""Name -> (the question, its cases)."""


def cases(groups: Sequence[str]) -> list[Case]:
    """Raises ConfigError for a group that there is not."""
    unknown = sorted(set(groups) - GROUPS.keys())
    if unknown:
        raise ConfigError(f"unknown group {', '.join(unknown)}; there are: {', '.join(GROUPS)}")
    return [case for group in groups or GROUPS for case in GROUPS[group][1]()]
