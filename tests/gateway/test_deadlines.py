"""Deadlines of many waits, with one timer."""

import asyncio
import time

from agentserving_gateway.deadlines import Deadlines
from support.eventually import DEADLINE_S

SHORT_S = 0.05


async def _result(future: "asyncio.Future[str | None]") -> str | None:
    async with asyncio.timeout(DEADLINE_S):
        return await future


def _futures(count: int) -> list["asyncio.Future[str | None]"]:
    loop = asyncio.get_running_loop()
    return [loop.create_future() for _ in range(count)]


async def test_a_wait_without_an_answer_ends_at_its_deadline_with_none() -> None:
    (future,), deadlines, began = _futures(1), Deadlines(), time.monotonic()
    deadlines.watch(future, SHORT_S)
    assert await _result(future) is None
    assert time.monotonic() - began >= SHORT_S


async def test_an_answer_before_the_deadline_stays() -> None:
    (first, second), deadlines = _futures(2), Deadlines()
    deadlines.watch(first, SHORT_S)
    deadlines.watch(second, SHORT_S)
    first.set_result("answer")
    assert await _result(second) is None
    assert await _result(first) == "answer"


async def test_a_wait_that_begins_later_has_a_deadline_of_its_own() -> None:
    (first, second), deadlines = _futures(2), Deadlines()
    deadlines.watch(first, SHORT_S)
    assert await _result(first) is None
    began = time.monotonic()
    deadlines.watch(second, SHORT_S)
    assert await _result(second) is None
    assert time.monotonic() - began >= SHORT_S


async def test_a_short_wait_does_not_wait_for_a_longer_one_that_began_before() -> None:
    (long, short), deadlines = _futures(2), Deadlines()
    deadlines.watch(long, 10 * DEADLINE_S)
    deadlines.watch(short, SHORT_S)
    assert await _result(short) is None
    assert not long.done()
    long.cancel()
