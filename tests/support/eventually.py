"""Waiting in tests: for a condition, with a deadline, never for a fixed time or a number of steps.

The deadline only bounds how long a failing test takes. It is generous, so that a busy machine fails no test; a passing
test returns as soon as its condition holds.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE_S = 30.0
POLL_S = 0.01


def eventually(condition: Callable[[], T], what: str = "", deadline_s: float = DEADLINE_S, poll_s: float = POLL_S) -> T:
    """The first true value of `condition`; AssertionError naming `what` and the last value after `deadline_s`."""
    deadline = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, _late(condition, what, deadline_s, value)
        time.sleep(poll_s)


async def eventually_async(
    condition: Callable[[], T | Awaitable[T]], what: str = "", deadline_s: float = DEADLINE_S, poll_s: float = POLL_S
) -> T:
    """As `eventually`, while the event loop runs on; `condition` may be a coroutine function."""
    deadline = time.monotonic() + deadline_s
    while True:
        result = condition()
        value: T = await result if inspect.isawaitable(result) else result
        if value:
            return value
        assert time.monotonic() < deadline, _late(condition, what, deadline_s, value)
        await asyncio.sleep(poll_s)


def _late(condition: Callable[[], object], what: str, deadline_s: float, value: object) -> str:
    name = what or getattr(condition, "__qualname__", repr(condition))
    return f"{name}: not true within {deadline_s:g} s; last value: {value!r}"
