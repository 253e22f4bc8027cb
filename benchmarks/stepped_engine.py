"""An engine of constant load under the default policy, for timing what the policy costs per step. No vLLM.

A step runs what the plugin runs in one (`EnginePolicy`): the decision with its price of a preemption, the choice of the
calls that may start next to retained KV, the charge, and for calls that end the retention of their context. Most
programs return with another call, so retained contexts are claimed, expire and are dropped. Each call that ends is
replaced, so the queue keeps its length.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from agentserving.contract.ids import ProgramId, ProgramKey, Tenant
from agentserving.contract.policy import DEFAULT
from agentserving_engine.policy import CallEnd, CallFacts, EnginePolicy, KvTraits, origin_of

BATCH, STEP_US = 16, 10_000
FREE_BLOCKS, CONTEXT_BLOCKS, BLOCK_SIZE = 600, 20, 16
CONTEXT_TOKENS = CONTEXT_BLOCKS * BLOCK_SIZE
PREFILL_US_PER_TOKEN = 50
PROGRAMS = 5_000
# Probability that a running call ends in a step, and that its program returns with another call.
ENDS, RETURNS = 0.01, 0.7
TENANT = Tenant("default")


class Memory:
    """agentserving_engine.policy.Memory over a cache that evicts nothing; a block is a number."""

    def common(self, one: Sequence[object], other: Sequence[object]) -> int:
        """Leading blocks that both have."""
        return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

    def blocks_of(self, unit: object) -> int:
        """Contexts are lists of blocks."""
        return 1

    def idle(self, context: Sequence[object], first: int) -> int:
        """All blocks from `first` on: no call references them."""
        return len(context) - first

    def refresh(self, context: Sequence[object], first: int) -> None:
        """Nothing is evicted."""


class SteppedEngine:
    """`step_us` runs a step. Implements agentserving_engine.policy.Engine with contexts of one size."""

    def __init__(self, waiting: int, seed: int = 0) -> None:
        blocks = FREE_BLOCKS + BATCH * CONTEXT_BLOCKS
        self.kv = KvTraits(block_size=BLOCK_SIZE, blocks=blocks, findable=True, reloadable=False)
        self._policy = EnginePolicy(DEFAULT, self, Memory())
        self._policy.prefill.observe(PREFILL_US_PER_TOKEN * CONTEXT_TOKENS, 0, CONTEXT_TOKENS)
        self._rng = random.Random(seed)
        self._now_us = 0
        self._count = 0
        self._taken_tokens = 0
        for _ in range(waiting + BATCH):
            self._policy.arrive(self._call_of(self._any_program()), self._now_us)

    # -- agentserving_engine.policy.Engine -----------------------------------------------------------------------

    def slots(self) -> int:
        return BATCH

    def free_blocks(self) -> int:
        """Room for some calls, so that retained contexts matter."""
        return FREE_BLOCKS

    def coming_blocks(self) -> int:
        return 0

    def running_tokens(self) -> int:
        return BATCH * CONTEXT_TOKENS

    def tokens(self, key: str) -> int:
        return CONTEXT_TOKENS

    def computed_tokens(self, key: str) -> int:
        return CONTEXT_TOKENS

    def released_blocks(self, key: str) -> int:
        return CONTEXT_BLOCKS

    def preemptable(self, key: str) -> bool:
        return True

    def admission_check(self) -> Callable[[str], bool]:
        """Nothing but room prevents a start."""
        return lambda key: True

    def context(self, key: str) -> Sequence[object]:
        """Waiting calls begin a context."""
        return ()

    def cached_blocks(self, key: str) -> tuple[int, int]:
        """Nothing is cached for waiting calls."""
        return 0, 0

    # -- steps ---------------------------------------------------------------------------------------------------

    def _any_program(self) -> ProgramKey:
        return ProgramKey(TENANT, ProgramId(f"p{self._rng.randrange(PROGRAMS)}"))

    def _call_of(self, program: ProgramKey) -> CallFacts:
        """A call of a program that has attained anything up to some tens of seconds."""
        self._count += 1
        attained_us = int(self._rng.expovariate(1 / 5e6))
        return CallFacts(
            f"r{self._count}", program, attained_service_us=attained_us, program_arrival_us=self._now_us + 1
        )

    def step_us(self) -> float:
        """Runs one step; returns the microseconds of CPU that the policy took."""
        policy, queue = self._policy, self._policy.queue
        self._now_us += STEP_US
        ended = [key for key in queue.running_keys if self._rng.random() < ENDS]
        programs = [queue.facts(key).program if self._rng.random() < RETURNS else self._any_program() for key in ended]
        arriving = [self._call_of(program) for program in programs]
        ends = [
            CallEnd(key=key, origin=origin_of(""), context=range(CONTEXT_BLOCKS), tokens=CONTEXT_TOKENS)
            for key in ended
        ]
        began = time.thread_time_ns()
        for key in policy.decide(self._now_us).preempt:
            queue.preempt(key, self._now_us)
        self._start()
        queue.charge(queue.running_keys, STEP_US)
        for end in ends:
            policy.retain(end, self._now_us)
            policy.finish(end.key, self._now_us)
        for facts in arriving:
            policy.arrive(facts, self._now_us)
        return (time.thread_time_ns() - began) / 1000

    def _start(self) -> None:
        """Starts as many calls as there are free slots: the best that fit next to retained contexts."""
        queue = self._policy.queue
        slots = BATCH - queue.running_count
        if not slots:
            return
        able = self._policy.startable(
            self._now_us, slots=slots, taken_tokens=self._taken_tokens, waiting=queue.iter_waiting()
        )
        waiting = iter(able) if able is not None else queue.iter_waiting()
        for key in [key for key, _ in zip(waiting, range(slots), strict=False)]:
            queue.start(key, self._now_us)
            self._taken_tokens += CONTEXT_TOKENS
