"""`benchmarks.stepped_engine` for checkouts up to 7539c88, whose policy was assembled by the plugin.

Delete it when no such checkout is compared with any more. Everything is Any: the checks run against newer code.
"""

from __future__ import annotations

import random
import time
from functools import partial
from typing import Any

from benchmarks.probes.worker import attribute

BATCH, STEP_US = 16, 10_000
FREE_BLOCKS, CONTEXT_BLOCKS, BLOCK_SIZE = 600, 20, 16
PREFILL_US_PER_TOKEN = 50.0
PROGRAMS, ENDS, RETURNS = 5_000, 0.01, 0.7

DEFAULT: Any = attribute("DEFAULT", "agentserving.policy")
CallFacts, CallQueue, Retention, Wanted, lost_tokens, wanted_blocks = (
    attribute(name, "agentserving_engine.policy")
    for name in ("CallFacts", "CallQueue", "Retention", "Wanted", "lost_tokens", "wanted_blocks")
)


class Memory:
    """A cache that evicts nothing; a block is a number."""

    def common(self, one: Any, other: Any) -> int:
        return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

    def idle(self, context: Any, first: int) -> int:
        return len(context) - first

    def refresh(self, context: Any, first: int) -> None:
        return


class SteppedEngine:
    """The same steps as in `benchmarks.stepped_engine`."""

    def __init__(self, waiting: int, seed: int = 0) -> None:
        self._queue, self._retention = CallQueue(DEFAULT), Retention(Memory())
        self._rng = random.Random(seed)
        self._now_us = self._count = self._computed_blocks = 0
        self._program_of: dict[str, str] = {}
        for _ in range(waiting + BATCH):
            self._arrive(self._call_of(self._any_program()))

    def _any_program(self) -> str:
        return f"p{self._rng.randrange(PROGRAMS)}"

    def _call_of(self, program: str) -> Any:
        self._count += 1
        key = f"r{self._count}"
        self._program_of[key] = program
        attained_us = int(self._rng.expovariate(1 / 5e6))
        return CallFacts(key, program, attained_service_us=attained_us, program_arrival_us=self._now_us + 1)

    def _arrive(self, facts: Any) -> None:
        self._queue.arrive(facts, self._now_us)
        self._retention.back(facts.program, self._now_us)

    def step_us(self) -> float:
        queue = self._queue
        self._now_us += STEP_US
        ended = [key for key in queue.running_keys if self._rng.random() < ENDS]
        programs = [self._program_of[key] if self._rng.random() < RETURNS else self._any_program() for key in ended]
        arriving = [self._call_of(program) for program in programs]
        began = time.thread_time_ns()
        self._decide()
        self._start()
        queue.charge(queue.running_keys, STEP_US)
        for key in ended:
            self._end(key)
        for facts in arriving:
            self._arrive(facts)
        return (time.thread_time_ns() - began) / 1000

    # What the plugin asked vLLM's requests for.

    def _tokens(self, key: str) -> int:
        return CONTEXT_BLOCKS * BLOCK_SIZE

    def _resume_us(self, free_blocks: int, waiting_blocks: int, key: str) -> float:
        lost = lost_tokens(
            self._tokens(key), block_size=BLOCK_SIZE, findable=True, free_blocks=free_blocks,
            waiting_blocks=waiting_blocks,
        )  # fmt: skip
        return float(lost * PREFILL_US_PER_TOKEN)

    def _decide(self) -> None:
        queue = self._queue
        if queue.settled:
            return
        waiting_blocks = wanted_blocks(queue.waiting_count, BATCH, BATCH * CONTEXT_BLOCKS * BLOCK_SIZE, BLOCK_SIZE)
        decision = queue.decide(
            self._now_us, slots=BATCH, free_blocks=FREE_BLOCKS,
            need_blocks=lambda key: self._tokens(key) // BLOCK_SIZE + 1,
            returns_blocks=lambda key: -(-self._tokens(key) // BLOCK_SIZE),
            preemptable=lambda key: True, admissible=lambda key: True,
            resume_us=partial(self._resume_us, FREE_BLOCKS, waiting_blocks),
        )  # fmt: skip
        for key in decision.preempt:
            queue.preempt(key, self._now_us)

    def _start(self) -> None:
        queue = self._queue
        slots = BATCH - len(queue.running_keys)
        if not slots:
            return
        able = None
        if not self._retention.empty:
            self._retention.refresh(self._computed_blocks, FREE_BLOCKS)
            able = self._retention.may_start(
                queue.iter_waiting(), self._now_us, slots=slots, free_blocks=FREE_BLOCKS, wanted=self._wanted
            )
        waiting = iter(able) if able is not None else queue.iter_waiting()
        for key in [key for key, _ in zip(waiting, range(slots), strict=False)]:
            queue.start(key, self._now_us)
            self._computed_blocks += CONTEXT_BLOCKS

    def _wanted(self, key: str) -> Any:
        return Wanted(self._program_of[key], self._queue.place(key), self._tokens(key) // BLOCK_SIZE + 1)

    def _end(self, key: str) -> None:
        queue, program = self._queue, self._program_of.pop(key)
        keep_us = CONTEXT_BLOCKS * BLOCK_SIZE * PREFILL_US_PER_TOKEN * queue.policy.retention_milli / 1000
        self._retention.left(program, "", queue.place(key), range(CONTEXT_BLOCKS), keep_us, self._now_us)
        queue.finish(key, self._now_us)
