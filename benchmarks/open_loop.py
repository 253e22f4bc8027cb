"""An open loop of calls: each starts when it is due, whatever became of those before it, and is timed from then.

A call's clock starts at its due time, not when its task first runs: the time that a busy event loop takes to get to it
is part of what a client of that loop waits for, and is the larger part of a p99.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from agentserving_replay.workloads import poisson


def due_times(seed: int, rate_per_s: float, seconds: float) -> Iterator[float]:
    """Poisson arrivals within a window, seconds from its start."""
    for due_s in poisson(random.Random(f"open-loop-{seed}"), rate_per_s):
        if due_s >= seconds:
            return
        yield due_s


async def run(
    seed: int, rate_per_s: float, seconds: float, call: Callable[[int, float], Coroutine[Any, Any, None]],
    clock: Callable[[], float] = time.perf_counter,
) -> int:  # fmt: skip
    """Starts `call(number, due)` for every arrival and waits for all of them; gives their count.

    `due` is on `clock`. The first call that raises ends the load with its exception.
    """
    began, count = clock(), 0
    async with asyncio.TaskGroup() as group:
        for due_s in due_times(seed, rate_per_s, seconds):
            await asyncio.sleep(max(0.0, began + due_s - clock()))
            group.create_task(call(count, began + due_s))
            count += 1
    return count


def quantiles_ms(seconds: list[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    ordered = sorted(seconds)
    return {f"p{q}": 1000 * ordered[int(q / 100 * (len(ordered) - 1))] for q in (50, 95, 99)}
