"""Ids in order, in blocks: adding or removing one moves a block's worth of others, however many there are. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

from agentserving.contract.ids import ProgramId

# A block is divided when it has twice as many.
BLOCK = 512


class SortedIds:
    """Distinct ids, smallest first."""

    def __init__(self) -> None:
        # No block is empty; `_firsts` has the first id of each.
        self._blocks: list[list[ProgramId]] = []
        self._firsts: list[ProgramId] = []

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def add(self, program_id: ProgramId) -> None:
        """Adds an id that is not there."""
        if not self._blocks:
            self._blocks, self._firsts = [[program_id]], [program_id]
            return
        at = max(0, bisect_right(self._firsts, program_id) - 1)
        block = self._blocks[at]
        insort(block, program_id)
        if len(block) >= 2 * BLOCK:
            self._blocks.insert(at + 1, block[BLOCK:])
            self._firsts.insert(at + 1, block[BLOCK])
            del block[BLOCK:]
        self._firsts[at] = block[0]

    def remove(self, program_id: ProgramId) -> None:
        """Removes an id, which must be there."""
        at = bisect_right(self._firsts, program_id) - 1
        block = self._blocks[at]
        del block[bisect_left(block, program_id)]
        if block:
            self._firsts[at] = block[0]
        else:
            del self._blocks[at], self._firsts[at]

    def after(self, program_id: str) -> Iterator[ProgramId]:
        """Ids greater than one, which need not be there."""
        at = max(0, bisect_right(self._firsts, program_id) - 1)
        for block in self._blocks[at : at + 1]:
            yield from block[bisect_right(block, program_id) :]
        for number in range(at + 1, len(self._blocks)):
            yield from self._blocks[number]
