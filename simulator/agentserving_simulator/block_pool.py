"""The simulated KV cache: blocks, who holds them, and which of them a later prompt finds again.

As in vLLM (`v1/core/block_pool.py`): only full blocks are found, by a hash over everything before and in them; a block
that nobody holds stays findable until its place is needed; the least recently freed goes first, and of one request's
blocks the last, so that a shared beginning lives longest. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """`size` blocks, named by their number."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._holders = [0] * size
        self._hash: list[bytes | None] = [None] * size
        # Least recently freed first; the values mean nothing.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(size))
        # Equal blocks computed side by side are kept both, as vLLM does.
        self._found: dict[bytes, dict[int, None]] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody holds, findable ones included."""
        return len(self._free)

    def lookup(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks of the longest beginning of `hashes` that are in the cache."""
        blocks = []
        for each in hashes:
            found = self._found.get(each)
            if not found:
                break
            blocks.append(next(iter(found)))
        return blocks

    def cost(self, blocks: Iterable[int]) -> int:
        """How many of these would leave the free ones when taken."""
        return sum(1 for block in blocks if not self._holders[block])

    def returns(self, blocks: Iterable[int]) -> int:
        """How many of these would be free if one holder let go of them."""
        return sum(1 for block in blocks if self._holders[block] == 1)

    def share(self, blocks: Iterable[int]) -> None:
        """One more holder of blocks that `lookup` gave."""
        for block in blocks:
            if not self._holders[block]:
                del self._free[block]
            self._holders[block] += 1

    def take(self, count: int) -> list[int]:
        """Blocks to write into; what was findable in them is forgotten. ValueError when there are not so many."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks wanted, {len(self._free)} free")
        taken = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._holders[block] = 1
            taken.append(block)
        return taken

    def remember(self, block: int, block_hash: bytes) -> None:
        """A held block is full from now on."""
        if self._hash[block] is None:
            self._hash[block] = block_hash
            self._found.setdefault(block_hash, {})[block] = None

    def give(self, blocks: Sequence[int]) -> None:
        """A holder lets go of its blocks, given in their order in the request."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free[block] = None

    def _forget(self, block: int) -> None:
        known = self._hash[block]
        if known is None:
            return
        self._hash[block] = None
        del self._found[known][block]
        if not self._found[known]:
            del self._found[known]
