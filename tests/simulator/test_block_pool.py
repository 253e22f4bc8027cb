"""The simulated KV cache against a model that is too simple to be wrong."""

from __future__ import annotations

import pytest
from agentserving_simulator.block_pool import BlockPool
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

SIZE = 8


class Pool(RuleBasedStateMachine):
    """Holders take, fill, share and give; the model keeps for each block who holds it and when it was freed."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(SIZE)
        self.held: list[list[int]] = []
        self.known: dict[int, bytes] = {}
        self.freed = list(range(SIZE))

    @rule(count=st.integers(1, 4), fill=st.booleans(), name=st.integers(0, 3))
    def take(self, count: int, fill: bool, name: int) -> None:
        if count > len(self.freed):
            with pytest.raises(ValueError, match="blocks requested"):
                self.pool.take(count)
            return
        blocks = self.pool.take(count)
        assert blocks == self.freed[:count], "the least recently freed go first"
        del self.freed[:count]
        self.held.append(blocks)
        for index, block in enumerate(blocks):
            self.known.pop(block, None)
            if fill:
                self.known[block] = bytes([name, index])
                self.pool.remember(block, bytes([name, index]))

    @rule(name=st.integers(0, 3), count=st.integers(1, 4))
    def share(self, name: int, count: int) -> None:
        wanted = [bytes([name, index]) for index in range(count)]
        found = self.pool.lookup(wanted)
        assert [self.known[block] for block in found] == wanted[: len(found)]
        if len(found) < count:
            assert wanted[len(found)] not in self.known.values(), "a block that is there was not found"
        assert self.pool.cost(found) == sum(1 for block in found if block in self.freed)
        self.pool.share(found)
        self.freed = [block for block in self.freed if block not in found]
        self.held.append(found)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        blocks = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        alone = [block for block in blocks if not any(block in other for other in self.held)]
        assert self.pool.returns(blocks) == len(alone)
        self.pool.give(blocks)
        self.freed += reversed(alone)

    @invariant()
    def agrees(self) -> None:
        assert self.pool.free == len(self.freed)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
