"""Every Redis key of Tether, in one place.

{prefix}stream:{priority}   stream   items waiting or in flight; an entry goes when its verdict is stored
{prefix}item:{id}           hash     fingerprint, where its entry lies, later the verdict (then with TTL)
{prefix}group:{group}       set      ids of the group's unfinished items
{prefix}dead                stream   items given up on, with their text
{prefix}verdicts            channel  id, verdict, id, verdict ... on lines: a wake-up, never the truth
{prefix}cache:{tenant}:{judge}:{text}  string  verdict of that text (hashes), with a TTL
{prefix}workers             zset     worker -> unix seconds until which it counts as alive
{prefix}worker:{worker}     string   what that worker says of itself, JSON, with a TTL
{prefix}writable            string   written by readiness probes
{prefix}holds               hash     worker, or * for all -> why an operator lets it take nothing, JSON
{prefix}unvouched:{judge}   zset     worker -> unix seconds at which it last judged, with a TTL
{prefix}unvouched:{judge}:{worker}  zset  "group id" judged since its last good control, with a TTL
{prefix}suspects:{group}    set      ids of the group whose verdicts turned suspect, with a TTL
{prefix}kind:{group}        string   the score kind of the group's verdicts, with a TTL
{prefix}rate:{tenant}       hash     a tenant's token bucket, with a TTL
{prefix}once:{key}          string   what an Idempotency-Key was answered, JSON, with a TTL
{prefix}watch:{token}       string   ids that an event stream of a group covers, JSON, with a TTL
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

    def cached(self, tenant: str, judge: str, text: str) -> str:
        """`judge` and `text`: hashes."""
        return f"{self.prefix}cache:{tenant}:{judge}:{text}"

    @property
    def workers(self) -> str:
        return f"{self.prefix}workers"

    def worker(self, worker: str) -> str:
        return f"{self.prefix}worker:{worker}"

    @property
    def writable(self) -> str:
        return f"{self.prefix}writable"

    @property
    def holds(self) -> str:
        return f"{self.prefix}holds"

    def unvouched(self, judge: str, worker: str | None = None) -> str:
        """`judge`: a hash. Without a worker: the index of the workers that have a list."""
        return f"{self.prefix}unvouched:{judge}" + ("" if worker is None else f":{worker}")

    def suspects(self, group: str) -> str:
        return f"{self.prefix}suspects:{group}"

    def kind(self, group: str) -> str:
        return f"{self.prefix}kind:{group}"

    def rate(self, tenant: str) -> str:
        return f"{self.prefix}rate:{tenant}"

    def once(self, key: str) -> str:
        return f"{self.prefix}once:{key}"

    def watch(self, token: str) -> str:
        return f"{self.prefix}watch:{token}"
