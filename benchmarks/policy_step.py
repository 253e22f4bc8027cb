"""Time of the default policy per engine step: batch 16, 1,000 and 10,000 calls waiting, arrivals and ends included.

`stepped_engine` runs what the plugin runs in a step, without vLLM. What the plugin reads from vLLM's objects and
writes to them comes on top; `throughput` measures the whole on vLLM.
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.bars import Bar, bar
from benchmarks.stepped_engine import BATCH, SteppedEngine

WARM_UP, STEPS, RUNS = 200, 2000, 5
SCOPE = "decision, retention and queue under the default policy"


def step_us(waiting: int, seed: int) -> tuple[float, float]:
    """Median and mean microseconds per step, after a warm-up."""
    engine = SteppedEngine(waiting, seed)
    for _ in range(WARM_UP):
        engine.step_us()
    times = [engine.step_us() for _ in range(STEPS)]
    return statistics.median(times), statistics.fmean(times)


def measure() -> Any:
    """Runs the benchmark; gives its raw figures."""
    few, many = [], []
    for seed in range(RUNS):
        few.append(step_us(1_000, seed))
        many.append(step_us(10_000, seed))
    return {"scope": SCOPE, "few": few, "many": many}


def summarise(raw: Any) -> list[Bar]:
    """The bars of raw figures."""
    means_few, means_many = ([mean for _, mean in raw[name]] for name in ("few", "many"))
    growth = [many / few for few, many in zip(means_few, means_many, strict=True)]
    against = f"mean step, batch {BATCH}, with churn; {raw['scope']}"
    return [
        bar("policy-step-1000-waiting", means_few, "<= 80", "us", against),
        bar("policy-step-growth-to-10000", growth, "<= 2", "ratio", f"1,000 waiting; {raw['scope']}"),
    ]
