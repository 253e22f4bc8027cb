"""Policy time per engine step: batch 16, 1,000 and 10,000 calls waiting, arrivals and ends included. No engine."""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

from agentserving.contract.policy import ATLAS
from agentserving_engine.policy import CallFacts, CallQueue

from benchmarks.bars import Bar, bar

BATCH, STEPS, RUNS, STEP_US = 16, 2000, 5, 10_000


class Engine:
    """A queue kept at `waiting` waiting calls: for each call that ends another arrives."""

    def __init__(self, waiting: int, seed: int) -> None:
        self.queue = CallQueue(ATLAS)
        self.dice = random.Random(seed)
        self.now = 0
        self.count = 0
        for _ in range(waiting + BATCH):
            self.arrive()

    def arrive(self) -> None:
        """A call of a program that has received anything up to 100 s."""
        self.count += 1
        attained = int(self.dice.expovariate(1 / 5e6))
        self.queue.arrive(CallFacts(f"r{self.count}", f"p{self.count % 5000}", attained), self.now)

    def step(self) -> float:
        """One step of the engine; gives the policy's microseconds of it."""
        queue = self.queue
        self.now += STEP_US
        ends = [key for key in queue.running_keys if self.dice.random() < 0.01]
        began = time.perf_counter_ns()
        decision = queue.decide(
            self.now, slots=BATCH, free_blocks=10_000, need_blocks=lambda key: 20, returns_blocks=lambda key: 20
        )
        for key in decision.preempt:
            queue.preempt(key, self.now)
        for key in decision.admit:
            queue.start(key, self.now)
        queue.charge(queue.running_keys, STEP_US)
        for key in ends:
            queue.finish(key, self.now)
            self.arrive()
        return (time.perf_counter_ns() - began) / 1000


def median_step(waiting: int, seed: int) -> tuple[float, float]:
    """(median, mean) microseconds a step, after a warm-up."""
    engine = Engine(waiting, seed)
    for _ in range(200):
        engine.step()
    times = [engine.step() for _ in range(STEPS)]
    return statistics.median(times), statistics.fmean(times)


def measure() -> tuple[list[Bar], Any]:
    """Bars and raw figures."""
    few, many = [], []
    for seed in range(RUNS):
        few.append(median_step(1_000, seed))
        many.append(median_step(10_000, seed))
    growth = [b[1] / a[1] for a, b in zip(few, many, strict=True)]
    bars = [
        bar("policy-step-1000-waiting", [mean for _, mean in few], "<= 80", "us", "mean step, batch 16, with churn"),
        bar("policy-step-growth-to-10000", growth, "<= 2", "ratio", "the same at 1,000 waiting"),
    ]
    return bars, {"few": few, "many": many}
