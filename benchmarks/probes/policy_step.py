"""Probe: microseconds of the default policy per engine step at several queue lengths.

A step is what the plugin does in one, without vLLM: the decision with its price of a preemption, the choice of the
calls that may start beside retained KV, the charge, and for calls that end the retention of their context. Half of the
programs come back for another call, so retained contexts are claimed, expire and are dropped.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from agentserving_engine.policy import CallFacts, CallQueue, Retention, Wanted, wanted_blocks

from benchmarks.probes.worker import answer_rounds, attribute

DEFAULT = attribute("DEFAULT", "agentserving.contract.policy", "agentserving.policy")

BATCH, STEP_US = 16, 10_000
FREE_BLOCKS, CONTEXT_BLOCKS, BLOCK_SIZE = 600, 20, 16
PREFILL_US_PER_TOKEN = 50.0
# A call ends in a step with this probability, and its program comes back for another one with RETURNS.
ENDS, RETURNS = 0.01, 0.5
WAITING = (10, 100, 1_000, 10_000)


class Memory:
    """agentserving_engine.policy.retention.Memory over a cache that evicts nothing; a block is a number."""

    def common(self, one: Sequence[object], other: Sequence[object]) -> int:
        return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

    def idle(self, context: Sequence[object], first: int) -> int:
        return len(context) - first

    def refresh(self, context: Sequence[object], first: int) -> None:
        """Nothing is evicted, so there is nothing to keep young."""


class SteppedEngine:
    """A full batch and a queue of constant length under the default policy: an ended call is replaced by a new one."""

    def __init__(self, waiting: int, seed: int = 0) -> None:
        self.queue = CallQueue(DEFAULT)
        self.retention = Retention(Memory())
        self._dice = random.Random(seed)
        self._now_us = 0
        self._count = 0
        self._program_of: dict[str, str] = {}
        self._computed_blocks = 0
        for _ in range(waiting + BATCH):
            self._arrive(self._facts(f"p{self._dice.randrange(5_000)}"))

    def _facts(self, program: str) -> CallFacts:
        """A call of a program that has attained anything up to some ten seconds."""
        self._count += 1
        key = f"r{self._count}"
        self._program_of[key] = program
        attained_us = int(self._dice.expovariate(1 / 5e6))
        return CallFacts(key, program, attained_service_us=attained_us, program_arrival_us=self._now_us + 1)

    def _arrive(self, facts: CallFacts) -> None:
        self.queue.arrive(facts, self._now_us)
        self.retention.back(facts.program, self._now_us)

    def step_us(self) -> float:
        """Runs one step; gives the microseconds that the policy took."""
        queue = self.queue
        self._now_us += STEP_US
        ended = [key for key in queue.running_keys if self._dice.random() < ENDS]
        returning = [self._dice.random() < RETURNS for _ in ended]
        arriving = [
            self._facts(self._program_of[key] if returns else f"p{self._dice.randrange(5_000)}")
            for key, returns in zip(ended, returning, strict=True)
        ]
        began = time.perf_counter_ns()
        self._decide()
        self._start()
        queue.charge(queue.running_keys, STEP_US)
        for key in ended:
            self._end(key)
        for facts in arriving:
            self._arrive(facts)
        return (time.perf_counter_ns() - began) / 1000

    def _decide(self) -> None:
        queue = self.queue
        waiting_blocks = wanted_blocks(queue.waiting_count, BATCH, BATCH * CONTEXT_BLOCKS * BLOCK_SIZE, BLOCK_SIZE)
        lost_us = min(waiting_blocks, CONTEXT_BLOCKS) * BLOCK_SIZE * PREFILL_US_PER_TOKEN
        decision = queue.decide(
            self._now_us,
            slots=BATCH,
            free_blocks=FREE_BLOCKS,
            need_blocks=lambda key: CONTEXT_BLOCKS,
            returns_blocks=lambda key: CONTEXT_BLOCKS,
            resume_us=lambda key: lost_us,
        )
        for key in decision.preempt:
            queue.preempt(key, self._now_us)

    def _start(self) -> None:
        """Starts as many calls as there are free slots: the best that fit beside retained contexts."""
        queue = self.queue
        slots = BATCH - len(queue.running_keys)
        if not slots:
            return
        able = None
        if not self.retention.empty:
            self.retention.refresh(self._computed_blocks, FREE_BLOCKS)
            able = self.retention.may_start(
                queue.iter_waiting(), self._now_us, slots=slots, free_blocks=FREE_BLOCKS, wanted=self._wanted
            )
        if able is None:
            waiting = queue.iter_waiting()
            able = [key for key, _ in zip(waiting, range(slots), strict=False)]
        for key in able[:slots]:
            queue.start(key, self._now_us)
            self._computed_blocks += CONTEXT_BLOCKS

    def _wanted(self, key: str) -> Wanted:
        return Wanted(self._program_of[key], self.queue.place(key), CONTEXT_BLOCKS)

    def _end(self, key: str) -> None:
        queue, program = self.queue, self._program_of.pop(key)
        if key not in queue:
            return
        keep_us = CONTEXT_BLOCKS * BLOCK_SIZE * PREFILL_US_PER_TOKEN * queue.policy.retention_milli / 1000
        context = tuple(range(CONTEXT_BLOCKS))
        self.retention.left(program, "", queue.place(key), context, keep_us, self._now_us)
        queue.finish(key, self._now_us)


def main() -> None:
    """Answers each line on stdin with one round: mean microseconds per step at each queue length."""
    engines = {waiting: SteppedEngine(waiting) for waiting in WAITING}
    for engine in engines.values():
        for _ in range(200):
            engine.step_us()

    def measure() -> dict[str, float]:
        return {
            f"policy step at {waiting:,} waiting, us": sum(engine.step_us() for _ in range(400)) / 400
            for waiting, engine in engines.items()
        }

    answer_rounds(measure)


if __name__ == "__main__":
    main()
