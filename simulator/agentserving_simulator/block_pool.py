"""The simulated KV cache: blocks, the requests that reference them, and which of them a later prompt finds again.

As in vLLM (`v1/core/block_pool.py`): only full blocks are found, by a hash over their tokens and all tokens before
them. A block that no request references can be found until it is overwritten. The least recently freed block is
overwritten first, and of one request the last block, so that shared prefixes live longest. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import cast


class BlockPool:
    """`size` blocks, identified by number; also agentserving_engine.policy.Memory, over lists of block hashes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._references = [0] * size
        self._hash: list[bytes | None] = [None] * size
        # Least recently freed first; the values are unused.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(size))
        # As in vLLM, equal blocks computed in parallel are both kept.
        self._found: dict[bytes, dict[int, None]] = {}

    @property
    def free(self) -> int:
        """Blocks that no request references, cached ones included."""
        return len(self._free)

    def lookup(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks of the longest cached prefix of `hashes`."""
        blocks = []
        for each in hashes:
            found = self._found.get(each)
            if not found:
                break
            blocks.append(next(iter(found)))
        return blocks

    def cost(self, blocks: Iterable[int]) -> int:
        """How many of these are free now."""
        return sum(1 for block in blocks if not self._references[block])

    def returns(self, blocks: Iterable[int]) -> int:
        """How many of these become free when one reference is released."""
        return sum(1 for block in blocks if self._references[block] == 1)

    def share(self, blocks: Iterable[int]) -> None:
        """Adds a reference to blocks that `lookup` returned."""
        for block in blocks:
            if not self._references[block]:
                del self._free[block]
            self._references[block] += 1

    def take(self, count: int) -> list[int]:
        """Allocates blocks to write into, overwriting cached ones. ValueError when fewer are free."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks requested, {len(self._free)} free")
        taken = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._references[block] = 1
            taken.append(block)
        return taken

    def remember(self, block: int, block_hash: bytes) -> None:
        """A referenced block is full: later prompts find it from now on."""
        if self._hash[block] is None:
            self._hash[block] = block_hash
            self._found.setdefault(block_hash, {})[block] = None

    def give(self, blocks: Sequence[int]) -> None:
        """Releases a request's references to its blocks, given in their order."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if not self._references[block]:
                self._free[block] = None

    def common(self, one: Sequence[object], other: Sequence[object]) -> int:
        """Number of leading blocks that the two share."""
        return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

    def blocks_of(self, unit: object) -> int:
        """Contexts are lists of blocks."""
        return 1

    def idle(self, context: Sequence[object], first: int) -> int:
        """Blocks from `first` on that are cached and referenced by no request."""
        return self.cost(self._cached(context, first))

    def refresh(self, context: Sequence[object], first: int) -> None:
        """Makes those blocks the last ones to be overwritten, the end of the context first."""
        for block in reversed(self._cached(context, first)):
            if not self._references[block]:
                self._free.move_to_end(block)

    def _cached(self, context: Sequence[object], first: int) -> list[int]:
        return self.lookup(cast(Sequence[bytes], context))[first:]

    def _forget(self, block: int) -> None:
        known = self._hash[block]
        if known is None:
            return
        self._hash[block] = None
        del self._found[known][block]
        if not self._found[known]:
            del self._found[known]
