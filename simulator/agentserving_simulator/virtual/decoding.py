"""The calls that get a token in each step, with the totals that a stretch of steps needs. Pure."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentserving_simulator.virtual.requests import Request


class Decoding:
    """Counts steps: a member has the tokens it entered with, and one for each step since."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self.requests: dict[str, Request] = {}
        # Tokens of KV that the next step reads.
        self.context = 0
        self._step = 0
        self._entered: dict[str, int] = {}
        # (step at which it ends, step at which it entered, key); entries of former members are stale.
        self._ends: list[tuple[int, int, str]] = []
        # Number of members that need a new block in a step, by the step number modulo the block size.
        self._grows = [0] * block_size

    def enter(self, request: Request) -> None:
        """Adds a request that has computed all but its newest token."""
        key = request.key
        self.requests[key] = request
        self._entered[key] = self._step
        self.context += request.total
        self._grows[(self._step - request.computed) % self._block_size] += 1
        heapq.heappush(self._ends, (self._step + request.output - request.generated, self._step, key))

    def leave(self, request: Request) -> None:
        """Removes a request, after updating its counts."""
        key = request.key
        since = self._step - self._entered.pop(key)
        del self.requests[key]
        self._grows[(self._step - since - request.computed) % self._block_size] -= 1
        request.computed += since
        request.generated += since
        self.context -= request.total
        held = request.held
        if held is not None:
            grown = -(-request.computed // self._block_size) - held.blocks
            if grown > 0:
                held.blocks += grown
                held.private += grown

    def computed(self, key: str) -> int:
        """Tokens of a member with KV; 0 for a request that is no member."""
        request = self.requests.get(key)
        return 0 if request is None else request.computed + self._step - self._entered[key]

    def steps_to_end(self) -> int:
        """Steps until the first member has all its tokens."""
        while True:
            end, entered, key = self._ends[0]
            if self._entered.get(key) == entered:
                return end - self._step
            heapq.heappop(self._ends)

    def blocks_for(self, steps: int) -> int:
        """New blocks that the next `steps` steps need."""
        if steps == 1:
            return self._grows[self._step % self._block_size]
        rounds, rest = divmod(steps, self._block_size)
        begin = self._step % self._block_size
        over = max(0, begin + rest - self._block_size)
        return rounds * len(self.requests) + sum(self._grows[begin : begin + rest]) + sum(self._grows[:over])

    def advance(self, steps: int) -> list[Request]:
        """`steps` steps are over; returns the members that have all their tokens, which stay members."""
        self._step += steps
        self.context += steps * len(self.requests)
        done = []
        while self._ends and self._ends[0][0] <= self._step:
            _, entered, key = heapq.heappop(self._ends)
            if self._entered.get(key) == entered:
                done.append(self.requests[key])
        return done
