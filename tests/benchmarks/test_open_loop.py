"""Calls of an open loop are timed from when they were due, not from when the event loop got to them."""

from __future__ import annotations

import asyncio
import time

import pytest

from benchmarks import open_loop

# The event loop is blocked for this long once, early in the load.
STALL_S = 0.3


async def test_a_stalled_event_loop_shows_in_the_latencies() -> None:
    latencies: list[float] = []

    async def call(number: int, due: float) -> None:
        if number == 5:
            time.sleep(STALL_S)  # noqa: ASYNC251 it blocks the event loop, as a long callback does
        latencies.append(time.perf_counter() - due)

    count = await open_loop.run(1, 200.0, 0.5, call)
    assert len(latencies) == count
    # Calls that were due during the stall waited for its end.
    due_in_stall = [latency for latency in latencies if latency > 0.2 * STALL_S]
    assert len(due_in_stall) > 10
    assert max(latencies) >= STALL_S


async def test_all_calls_are_issued_whatever_becomes_of_the_earlier_ones() -> None:
    release, issued = asyncio.Event(), 0
    expected = len(list(open_loop.due_times(2, 100.0, 0.3)))

    async def call(number: int, due: float) -> None:
        nonlocal issued
        issued += 1
        if issued == expected:
            release.set()
        # No call ends before the last one has been issued.
        async with asyncio.timeout(30):
            await release.wait()

    assert await open_loop.run(2, 100.0, 0.3, call) == expected == issued


async def test_a_failing_call_ends_the_load_with_its_error() -> None:
    async def call(number: int, due: float) -> None:
        raise RuntimeError("the control plane did not answer in time")

    with pytest.raises(ExceptionGroup) as failure:
        await open_loop.run(3, 100.0, 5.0, call)
    assert failure.group_contains(RuntimeError, match="did not answer")


def test_a_seed_gives_the_same_arrivals_within_the_window() -> None:
    one, again = (list(open_loop.due_times(4, 50.0, 10.0)) for _ in range(2))
    assert one == again == sorted(one)
    assert one[-1] < 10.0
    assert len(one) == pytest.approx(500, rel=0.2)
    assert list(open_loop.due_times(5, 50.0, 10.0)) != one
