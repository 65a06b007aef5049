"""Whether the judge's processes grow: `python -m benchmarks.judge_memory`.

Resident memory of one API and one worker process after 200,000 items against that after 20,000, submitted
in batches of 64 and answered over HTTP. Half of the batches wait for their verdicts; the others are read
afterwards, as a client does that cannot wait.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.judge import PATH, Judge
from benchmarks.judge_load import Connection, bodies, closed_loop
from benchmarks.report import Row, write
from shared.embedded_redis import running_redis

SIZE = 64
CHUNK = 100
"""Batches made at a time."""
FIRST, LAST = 20_000, 200_000
LIMIT = 1.05


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch, running_redis(Path(scratch) / "redis") as server:
        judge = Judge(server.url, Path(scratch))
        try:
            with judge.workers(1, "--batch-size", str(SIZE)) as [worker]:
                pids = {"API": judge.api.ready["pid"], "worker": worker.ready["pid"]}
                done = _judge(judge, 0, FIRST)
                before = {name: resident_mib(pid) for name, pid in pids.items()}
                _judge(judge, done, LAST)
                after = {name: resident_mib(pid) for name, pid in pids.items()}
        finally:
            judge.api.stop()
    rows = []
    for name in pids:
        rows.append(Row(f"{name} after {FIRST:,} items", before[name], "MiB"))
        rows.append(Row(f"{name} after {LAST:,} items", after[name], "MiB"))
        rows.append(Row(f"{name}: growth", after[name] / before[name], "", LIMIT))
    return write("judge_memory", rows)


def _judge(judge: Judge, done: int, until: int) -> int:
    """Items judged by then."""
    while done < until:
        waited = bodies(CHUNK // 2, SIZE, done, wait_s=25)
        judge.items(waited, 8)
        asyncio.run(_submit_then_read(judge.url, bodies(CHUNK // 2, SIZE, done + 1)))
        done += CHUNK * SIZE
    return done


async def _submit_then_read(url: str, load: list[bytes]) -> None:
    await closed_loop(url, PATH, load, 8, expect=(200, 202))
    connection = Connection(url)
    for body in load:
        ids = [item["id"] for item in json.loads(body)["items"]]
        while ids:
            answer = await connection.post(f"{PATH}/read", json.dumps({"ids": ids, "wait_s": 5}).encode())
            ids = [one["id"] for one in json.loads(answer.body)["items"] if one["status"] == "pending"]
    await connection.close()


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
