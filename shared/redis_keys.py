"""Every Redis key of Tether, in one place.

{prefix}stream:{priority}   stream   items waiting or in flight; an entry goes when its verdict is stored
{prefix}item:{id}           hash     fingerprint, where its entry lies, later the verdict (then with TTL)
{prefix}group:{group}       set      ids of the group's unfinished items
{prefix}dead                stream   items given up on, with their text
{prefix}verdicts            channel  ids that have just become terminal: a wake-up, never the truth
{prefix}workers             zset     worker -> unix seconds until which it counts as alive
{prefix}worker:{worker}     string   what that worker says of itself, JSON, with a TTL
{prefix}writable            string   written by readiness probes
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.wire import Priority

DEFAULT_PREFIX = "tether:judge:"


@dataclass(frozen=True)
class JudgeKeys:
    prefix: str = DEFAULT_PREFIX

    def stream(self, priority: Priority) -> str:
        return f"{self.prefix}stream:{priority.value}"

    def streams(self) -> tuple[str, ...]:
        """In the order in which they are read."""
        return tuple(self.stream(priority) for priority in Priority)

    def item(self, judgement_id: str) -> str:
        return f"{self.prefix}item:{judgement_id}"

    def group(self, group: str) -> str:
        return f"{self.prefix}group:{group}"

    @property
    def dead(self) -> str:
        return f"{self.prefix}dead"

    @property
    def verdicts(self) -> str:
        return f"{self.prefix}verdicts"

    @property
    def workers(self) -> str:
        return f"{self.prefix}workers"

    def worker(self, worker: str) -> str:
        return f"{self.prefix}worker:{worker}"

    @property
    def writable(self) -> str:
        return f"{self.prefix}writable"
