"""While there is no engine, calls wait for one, are counted as demand, and are refused in the end."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from agentserving_gateway.calls import Refusal
from agentserving_gateway.errors import HttpError
from agentserving_gateway.holding import Holding
from gateway.gateway_rig import Engine, Rig, answer_json, attach, rig, until
from support.eventually import eventually_async

NO_ENGINE = Refusal(code=14, reason="NO_ENGINE", message="no engine can take a call")
PROGRAM = "x-agentserving-program-id: p\r\n"


async def starts(made: Rig) -> Engine:
    """An engine attaches."""
    engine = Engine("late", answer_json)
    await attach(engine, grpc.aio.insecure_channel(made.control_plane), ())
    return engine


def held(made: Rig) -> int:
    return made.plane.demand().signals.held_calls


async def test_calls_wait_for_the_first_engine_and_count_as_demand_for_it() -> None:
    async with rig(hold_s=60) as made:
        calls = [asyncio.create_task(made.post(headers=PROGRAM, bound_s=60)) for _ in range(3)]
        calls.append(asyncio.create_task(made.post(bound_s=60)))
        await until(lambda: held(made) == 4)
        signals = made.plane.demand().signals
        assert (signals.held_calls, signals.held_programs) == (4, 2)
        # They ask again and again, and are the same four.
        await until(lambda: made.admission.holding.asked > 8)
        assert held(made) == 4
        assert not any(call.done() for call in calls)
        engine = await starts(made)
        try:
            assert all(answer.startswith(b"HTTP/1.1 200") for answer in await asyncio.gather(*calls))
            assert held(made) == 0
            await made.until_idle()
        finally:
            engine.stream.cancel()
            engine.close()


async def test_a_call_that_no_engine_comes_for_is_told_when_to_come_back() -> None:
    async with rig(hold_s=1.5) as made:

        async def told() -> bool:
            answer = await made.post(headers=PROGRAM)
            assert answer.startswith(b"HTTP/1.1 503")
            # On a busy machine the picker may be away for a moment: then Envoy answers.
            return b"no engine came within 2 s" in answer and b"retry-after: 10\r\n" in answer.lower()

        await eventually_async(told)


async def test_without_holding_a_call_is_refused_at_once() -> None:
    async with rig() as made:
        assert (await made.post(headers=PROGRAM)).startswith(b"HTTP/1.1 503")
        assert held(made) == 0


async def test_a_client_that_leaves_is_demand_no_more() -> None:
    async with rig(hold_s=60) as made:
        call = asyncio.create_task(made.post(headers=PROGRAM, bound_s=60))
        await until(lambda: held(made) == 1)
        call.cancel()
        await until(lambda: not made.admission.holding.held)
        await until(lambda: held(made) == 0)


async def test_more_calls_than_a_gateway_may_hold_are_refused() -> None:
    holding = Holding(60.0, most=1)
    first = asyncio.create_task(holding.wait(0.0, 0.0, NO_ENGINE))
    await asyncio.sleep(0)
    with pytest.raises(HttpError) as refused:
        await holding.wait(0.0, 0.0, NO_ENGINE)
    assert refused.value.message.startswith("1 calls wait")
    assert (refused.value.status, refused.value.headers["retry-after"]) == (503, "10")
    holding.engines_changed()
    await first
    # The place is free again.
    second = asyncio.create_task(holding.wait(0.0, 0.0, NO_ENGINE))
    await asyncio.sleep(0)
    holding.engines_changed()
    await second
