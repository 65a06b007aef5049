"""What the service costs before vLLM: `python -m benchmarks.judge_vllm`.

The same texts, in turn, straight to vLLM (prompts encoded before, so many requests in flight) and through
the whole service (API, queue, worker) in batches of 64 with as many in flight at vLLM. vLLM serves the
embedded world's small judge on this machine's CPU; the service shares its cores. Texts are new each time.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import httpx

from benchmarks.judge_load import closed_loop
from benchmarks.report import Row, write
from benchmarks.vllm_server import serve_vllm
from judge_service.backends.base import GradeRequest
from judge_service.backends.completions import ask_labels
from judge_service.backends.pool import Server
from judge_service.backends.prompting import PromptEncoder
from judge_service.backends.tokens import FileTokenizer
from shared.embedded_redis import running_redis
from shared.processes import start_module
from shared.rubrics.rubric import load_rubric
from trainer.demo.build import ensure_world
from trainer.demo.world import Kind, Split, requests

NAME = "small-judge"
RUBRIC = load_rubric("demo-v1")
SIZE = 64
BATCHES = 20
ROUNDS = 5
IN_FLIGHT = 64
OUTSTANDING = 3
"""Batches that the client has under way: one judged, one queued, one on its way."""


def texts(count: int) -> list[tuple[str, str]]:
    """Of the small judge's own world, each new by a number in it."""
    pool = requests(Kind.BENIGN, Split.HELDOUT, 64, seed=1)
    return [
        (pool[n % len(pool)].prompt, f"Sure, take number {uuid4().hex[:12]} first.") for n in range(count)
    ]


async def straight(url: str, encoder: PromptEncoder) -> float:
    """Items a second."""
    prompts = [encoder.encode(GradeRequest(RUBRIC, *pair)) for pair in texts(SIZE * BATCHES)]
    labels = encoder.labels(RUBRIC, 0)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:
        server = Server(url, client)
        waiting = iter(prompts)

        async def work() -> None:
            for ids in waiting:
                assert isinstance(ids, list)
                await ask_labels(server, NAME, ids, labels)

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
        return len(prompts) / (time.perf_counter() - began)


async def through(url: str) -> float:
    """Items a second, submit to verdict."""
    load = []
    for _ in range(BATCHES):
        items = [{"id": uuid4().hex, "prompt": prompt, "response": reply} for prompt, reply in texts(SIZE)]
        load.append(json.dumps({"items": items, "rubric": RUBRIC.name, "wait_s": 30}).encode())
    seconds, answers = await closed_loop(url, "/v1/judgements", load, OUTSTANDING, expect=(200,))
    verdicts = [verdict for answer in answers for verdict in json.loads(answer.body)["items"]]
    failed = [verdict for verdict in verdicts if verdict["status"] != "scored"]
    if failed or len(verdicts) != SIZE * BATCHES:
        raise SystemExit(f"{len(failed)} of {len(verdicts)} were not scored: {failed[:1]}")
    return len(verdicts) / seconds


def main() -> int:
    judge = ensure_world().judge
    tokenizer = FileTokenizer(judge)
    encoder = PromptEncoder(
        tokenizer,
        [RUBRIC],
        judge=NAME,
        max_tokens=2047,
        special_ids=tokenizer.special_ids,
        added_contents=tokenizer.added_contents,
    )
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(running_redis(scratch))
        vllm = stack.enter_context(serve_vllm(judge, NAME, log=scratch / "vllm.log"))
        env = {"REDIS_URL": redis.url, "OMP_NUM_THREADS": "1"}
        quiet = ("--log-level", "warning")
        worker = (
            "worker", "--backend", "vllm", "--url", vllm, "--form", "completion", "--tokenizer", str(judge),
            "--in-flight", str(IN_FLIGHT), "--batch-size", str(SIZE), "--concurrency", "2",
        )  # fmt: skip
        api = start_module("judge_service.cli", ("api", "--port", "0", *quiet), env=env)
        stack.callback(api.stop)
        stack.callback(start_module("judge_service.cli", (*worker, *quiet), env=env).stop)
        url = api.ready["url"]
        asyncio.run(straight(vllm, encoder))
        asyncio.run(through(url))
        rounds = []
        for _ in range(ROUNDS):
            rounds.append((asyncio.run(straight(vllm, encoder)), asyncio.run(through(url))))
            print(f"straight {rounds[-1][0]:.0f}/s, through the service {rounds[-1][1]:.0f}/s", flush=True)
    ratio = statistics.median(served / bare for bare, served in rounds)
    return write(
        "judge_vllm",
        [
            Row("straight to vLLM", statistics.median(bare for bare, _ in rounds), "items/s"),
            Row("through the service", statistics.median(served for _, served in rounds), "items/s"),
            Row("through the service / straight", ratio, "", 0.90, "higher"),
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
