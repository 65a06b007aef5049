"""What the judge service is measured against, each a process of its own.

redis    a consumer that does to Redis what a worker does, by plain redis-py pipelines
fastapi  a FastAPI route that checks the same body and answers
taskiq   a worker of taskiq-redis, with a task that does nothing
streaq   a worker of streaq, with a task that does nothing
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import redis
import uvicorn
from fastapi import FastAPI

from shared.processes import print_ready
from shared.wire import JudgementItem, JudgementList, PendingVerdict, SubmitJudgements, content_hash

STREAMS = ("bare:policy", "bare:target", "bare:evaluation")
STREAM = STREAMS[1]
GROUP = "judges"
CHANNEL = "bare:verdicts"
TTL_S = 3600
VERDICT = (
    b'{"id":"%s","status":"scored","score":0.0,"level":1,"probabilities":null,"label_mass":null,"spread":null,'
    b'"categories":null,"rationale":null,"usage":null,"judge":{"kind":"rules","model":"words-1",'
    b'"revision":null,"rubric":"demo-v1","rubric_hash":"0123456789abcdef","score_kind":"rules"},'
    b'"cached":false,"suspect":false,"error":null,"timings":{"queue_ms":1.2345,"judge_ms":0.12345}}'
)


def client(url: str) -> Any:
    return redis.Redis.from_url(url, protocol=2)


class BareProducer:
    """Does to Redis what an API process does for batches, and hears of the verdicts."""

    def __init__(self, url: str) -> None:
        self._redis = client(url)
        self._news = self._redis.pubsub(ignore_subscribe_messages=True)
        self._news.subscribe(CHANNEL)
        self._news.get_message(timeout=1)

    def run(self, batches: list[list[tuple[str, str, bytes]]], outstanding: int) -> float:
        """Seconds from the first submission to the last verdict. Items are (id, fingerprint, body)."""
        began = time.perf_counter()
        sent = done = 0
        total = sum(map(len, batches))
        todo = iter(batches)
        while done < total:
            while sent - done < outstanding and (batch := next(todo, None)) is not None:
                self._submit(batch)
                sent += len(batch)
            message = self._news.get_message(timeout=5)
            if message is not None:
                done += len(message["data"].split(b"\n")) // 2
        return time.perf_counter() - began

    def _submit(self, batch: list[tuple[str, str, bytes]]) -> None:
        pipe = self._redis.pipeline(transaction=False)
        for stream in STREAMS:
            pipe.xlen(stream)
        for name, _, _ in batch:
            pipe.hmget(f"bare:item:{name}", "fingerprint", "verdict", "until")
        # It decides nothing by what it read, so all goes in one pipeline.
        for name, fingerprint, body in batch:
            entry: Any = {"expires_at": "", "id": name, "fingerprint": fingerprint, "body": body}
            entry |= {"rubric": "demo-v1", "group": "", "rationale": "", "traceparent": ""}
            pipe.xadd(STREAM, entry)
            pipe.hset(
                f"bare:item:{name}", mapping={"fingerprint": fingerprint, "stream": STREAM, "entry": "0-0"}
            )
        pipe.execute()

    def close(self) -> None:
        self._news.close()
        self._redis.close()


def bare_batches(count: int, size: int, pairs: Any) -> list[list[tuple[str, str, bytes]]]:
    def one(number: int) -> tuple[str, str, bytes]:
        prompt, response = next(pairs)
        item = JudgementItem(prompt=prompt, response=response)
        name = f"{time.time_ns()}-{number}"
        return name, f"{content_hash(prompt, response)}:demo-v1", item.model_dump_json().encode()

    return [[one(number) for number in range(size)] for _ in range(count)]


def consume(url: str) -> None:
    db = client(url)
    for stream in STREAMS:
        db.delete(stream)  # what an earlier consumer left
        db.xgroup_create(stream, GROUP, id="0", mkstream=True)
    print_ready("bare")
    while True:
        read: Any = db.xreadgroup(GROUP, "bare", dict.fromkeys(STREAMS, ">"), count=64, block=1000)
        for stream, entries in read:
            names = [fields[b"id"] for _, fields in entries]
            prints = [fields[b"fingerprint"] for _, fields in entries]
            pipe = db.pipeline(transaction=False)
            pipe.zadd("bare:unvouched", {b" " + name: time.time() for name in names})
            pipe.expire("bare:unvouched", TTL_S)
            pipe.mget([b"bare:cache:" + fingerprint for fingerprint in prints])
            for name in names:
                pipe.hmget(b"bare:item:" + name, "fingerprint", "verdict")
            news = []
            for name, fingerprint in zip(names, prints, strict=True):
                verdict = VERDICT % name
                pipe.hset(b"bare:item:" + name, mapping={"verdict": verdict, "until": "1790000000.000"})
                pipe.expire(b"bare:item:" + name, TTL_S)
                pipe.set(b"bare:cache:" + fingerprint, verdict, ex=TTL_S)
                news += [name, verdict]
            ids = [entry for entry, _ in entries]
            pipe.xack(stream, GROUP, *ids)
            pipe.xdel(stream, *ids)
            pipe.publish(CHANNEL, b"\n".join(news))
            pipe.execute()


def serve() -> None:
    app = FastAPI()

    @app.post("/v1/judgements", status_code=202)
    async def submit(wanted: SubmitJudgements) -> JudgementList:
        return JudgementList(items=[PendingVerdict(id=item.id or "") for item in wanted.items])

    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print_ready("fastapi", url=f"http://127.0.0.1:{listener.getsockname()[1]}")
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    asyncio.run(server.serve(sockets=[listener]))


def main() -> None:
    from benchmarks.judge_peers import work_streaq, work_taskiq

    roles: dict[str, Callable[[], object]] = {
        "redis": lambda: consume(sys.argv[2]),
        "fastapi": serve,
        "taskiq": lambda: asyncio.run(work_taskiq(sys.argv[2])),
        "streaq": lambda: asyncio.run(work_streaq(sys.argv[2])),
    }
    roles[sys.argv[1]]()


if __name__ == "__main__":
    main()
