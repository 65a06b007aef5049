"""Several servers of one judge: who is asked, who is set aside, who comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import httpx

from judge_service.backends.base import Backend, Grade, GradeFailure, GradeRequest
from judge_service.backends.harmony import HarmonyOptions
from judge_service.backends.pool import HUNG_AFTER, PoolOptions
from judge_service.backends.vllm import VllmOptions, open_vllm
from shared.rubrics.rubric import load_rubric
from shared.wire import FailureCode
from tests.judge_standin import HarmonyBytes, StandIn

HARM_V1 = load_rubric("harm-v1")
BENIGN = ("How do I bake bread?", "Mix flour and water.")


def two_servers(one: StandIn, other: StandIn) -> httpx.MockTransport:
    handlers: dict[str, Callable[[httpx.Request], Awaitable[httpx.Response]]] = {
        "one": one.transport().handler,  # type: ignore[dict-item]
        "other": other.transport().handler,  # type: ignore[dict-item]
    }

    async def route(request: httpx.Request) -> httpx.Response:
        return await handlers[request.url.host](request)

    return httpx.MockTransport(route)


def open_two(one: StandIn, other: StandIn) -> Backend:
    pool = PoolOptions(("http://one", "http://other/v1"), in_flight=64, timeout_s=0.3)
    form = HarmonyOptions(reasoning="off")
    return open_vllm(VllmOptions(pool, form, (HARM_V1,), boot_s=0), two_servers(one, other))


def labels_read(standin: StandIn) -> int:
    return sum(path == "/v1/completions" for path, _ in standin.asked)


def test_two_servers_share_the_work() -> None:
    one, other = StandIn(HarmonyBytes()), StandIn(HarmonyBytes())
    backend = open_two(one, other)
    one.asked.clear()
    asyncio.run(backend.judge([GradeRequest(HARM_V1, *BENIGN)] * 40))
    assert labels_read(one) + labels_read(other) == 40
    assert abs(labels_read(one) - labels_read(other)) <= 4


def test_a_lost_server_costs_no_item_and_comes_back() -> None:
    one, other = StandIn(HarmonyBytes()), StandIn(HarmonyBytes())
    backend = open_two(one, other)
    request = GradeRequest(HARM_V1, *BENIGN)

    async def run() -> None:
        one.mode = "refused"
        assert all(isinstance(answer, Grade) for answer in await backend.judge([request] * 10))
        one.mode = "good"
        one.asked.clear()
        until = time.monotonic() + 10
        while not labels_read(one):
            assert time.monotonic() < until, "it was never asked again"
            await backend.judge([request] * 2)
            await asyncio.sleep(0.05)

    asyncio.run(run())


def test_a_server_that_serves_another_model_now_does_not_come_back() -> None:
    one, other = StandIn(HarmonyBytes()), StandIn(HarmonyBytes())
    backend = open_two(one, other)
    request = GradeRequest(HARM_V1, *BENIGN)

    async def run() -> None:
        one.mode = "refused"
        await backend.judge([request] * 4)
        one.mode, one.model = "good", "new-model"
        [lost] = [s for s in backend._pool.servers if s.url == "http://one"]  # type: ignore[attr-defined]
        lost.retry_at = 0.0
        one.asked.clear()
        assert all(isinstance(answer, Grade) for answer in await backend.judge([request] * 4))
        assert labels_read(one) == 0
        assert lost.retry_at > time.monotonic()

    asyncio.run(run())


def test_a_server_that_hangs_is_set_aside() -> None:
    one, other = StandIn(HarmonyBytes()), StandIn(HarmonyBytes())
    backend = open_two(one, other)
    one.mode = "hang"

    async def run() -> None:
        # The least loaded gets what comes: each time one item finds out.
        for _ in range(HUNG_AFTER):
            answers = await backend.judge([GradeRequest(HARM_V1, *BENIGN)] * 4)
            failed = [answer for answer in answers if isinstance(answer, GradeFailure)]
            assert [answer.code for answer in failed] == [FailureCode.TIMEOUT]
        again = await backend.judge([GradeRequest(HARM_V1, *BENIGN)] * 4)
        assert all(isinstance(answer, Grade) for answer in again)

    asyncio.run(run())
