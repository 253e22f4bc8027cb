"""vLLM's KV cache as retention sees it: which blocks of the pool hold a context, and which of them are in use."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import vllm.v1.kv_cache_interface as kv_cache_interface

from agentserving_engine.policy import KvLayout

# Layers that need all of a context. Subclasses may free blocks in its middle, so these are not asked with isinstance.
_FULL = ("FullAttentionSpec", "MLAAttentionSpec")
_WINDOWED = "SlidingWindowSpec"
# Blocks back from the end of what full attention has in the cache, in which the end of a cached window is looked for.
_SEARCHED = 32


class Window(NamedTuple):
    """Groups of layers with one sliding window, of which a hit needs the newest `blocks` blocks."""

    group_ids: list[int]
    blocks: int


class LayerGroups(NamedTuple):
    """Groups of layers of a model, by the numbers that vLLM gives them."""

    full: Sequence[int] = (0,)
    windows: Sequence[Window] = ()


def groups_of(config: Any, block_size: int, drops_a_block: bool) -> LayerGroups | None:
    """The groups of a `KVCacheConfig`; None when contexts cannot be found in them block by block.

    `block_size`: tokens of a block of the scheduler.

    A hit of a window needs the blocks that SlidingWindowManager (v1/core/single_type_kv_cache_manager.py) asks for;
    with `drops_a_block` (EAGLE, MTP) one more.
    """
    specs = [group.kv_cache_spec for group in config.kv_cache_groups]
    if len(specs) == 1:
        # Whatever its layers are: all are alike.
        return LayerGroups()
    full: list[int] = []
    windows: dict[int, Window] = {}
    full_types = [getattr(kv_cache_interface, name, None) for name in _FULL]
    for number, spec in enumerate(specs):
        if spec.block_size != block_size:
            return None
        if type(spec) in full_types:
            full.append(number)
        elif type(spec) is getattr(kv_cache_interface, _WINDOWED):
            blocks = -(-(spec.sliding_window - 1) // spec.block_size) + drops_a_block
            windows.setdefault(blocks, Window([], blocks)).group_ids.append(number)
        else:
            return None
    return LayerGroups(full, list(windows.values())) if full else None


class BlockMemory:
    """agentserving_engine.policy.Memory over a BlockPool; contexts are lists of block hashes.

    Block hashes are chained (v1/core/kv_cache_utils.py: `hash_block_tokens`), so two contexts are equal up to the first
    difference of their hashes. A request's blocks are freed last one first, so with full attention the cached blocks
    of a context are a prefix of it, and so are those that some request references. Hence all searches are binary.

    Of layers with a window only the newest blocks before the end of a hit count. They were freed together, so their
    first and last block speak for all.
    """

    def __init__(self, pool: Any, groups: LayerGroups) -> None:
        self.pool = pool
        self.layout = KvLayout(
            full=len(groups.full),
            windows=tuple(window.blocks for window in groups.windows for _ in window.group_ids),
        )
        self._full = list(groups.full)
        self._windows = list(groups.windows)

    def _blocks(self, block_hash: object, group_ids: list[int]) -> list[Any]:
        """The blocks of one hash in the groups; empty when one of them is not in the cache."""
        return self.pool.get_cached_block(block_hash, group_ids) or []

    def _in_use(self, block_hash: object, group_ids: list[int]) -> bool:
        """A request references the blocks."""
        blocks = self._blocks(block_hash, group_ids)
        return bool(blocks) and blocks[0].ref_cnt > 0

    def common(self, one: Sequence[object], other: Sequence[object]) -> int:
        """Number of leading blocks that the two share."""
        return bisect_left(range(min(len(one), len(other))), True, key=lambda at: one[at] != other[at])

    def blocks_of(self, unit: object) -> int:
        """A unit of a context is a hash: one block in each group."""
        return len(self._full)

    def cached(self, context: Sequence[object], most: int) -> int:
        """The longest hit, in units, `most` at most. A shorter hit of windows far before the end is not looked for."""
        units = bisect_left(
            range(min(len(context), most)), True, key=lambda at: not self._blocks(context[at], self._full)
        )
        if not self._windows:
            return units
        ends = range(units, max(0, units - _SEARCHED), -1)
        return next((end for end in ends if self._has_windows(context, end)), 0)

    def _has_windows(self, context: Sequence[object], end: int) -> bool:
        return all(
            self._blocks(context[at], window.group_ids)
            for window in self._windows
            for at in (end - 1, max(0, end - window.blocks))
        )

    def _used(self, context: Sequence[object], cached: int) -> int:
        """How many of the first `cached` units some request references, in layers with full attention."""
        return bisect_left(range(cached), True, key=lambda at: not self._in_use(context[at], self._full))

    def _idle_blocks(self, context: Sequence[object], first: int, cached: int) -> int:
        idle = len(self._full) * max(0, cached - max(first, self._used(context, cached)))
        for window in self._windows:
            if cached > first and not self._in_use(context[cached - 1], window.group_ids):
                idle += len(window.group_ids) * min(window.blocks, cached - first)
        return idle

    def found(self, context: Sequence[object], most: int) -> tuple[int, int]:
        """(blocks of the longest hit, those of them that no request references)."""
        cached = self.cached(context, most)
        return self.layout.held(cached), self._idle_blocks(context, 0, cached)

    def idle(self, context: Sequence[object], first: int) -> int:
        """Blocks of the units from `first` on that are cached and referenced by no request."""
        return self._idle_blocks(context, first, self.cached(context, len(context)))

    def refresh(self, context: Sequence[object], first: int) -> None:
        """Moves those blocks to the young end of vLLM's free queue, so that the end of the context is evicted first."""
        cached = self.cached(context, len(context))
        blocks = [
            block
            for at in range(max(first, self._used(context, cached)), cached)
            for block in self._blocks(context[at], self._full)
        ]
        for window in self._windows:
            newest = range(max(first, cached - window.blocks), cached)
            blocks += [block for at in newest for block in self._blocks(context[at], window.group_ids)]
        self.pool.touch(blocks)
        self.pool.free_blocks(reversed(blocks))
