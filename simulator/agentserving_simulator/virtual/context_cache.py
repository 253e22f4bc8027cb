"""The KV cache of an engine in virtual time: contexts are paths of segments instead of lists of blocks. Pure.

The context of a call is a path from the root: the system prompt, the earlier calls of its program, its own prompt. Two
calls share the common prefix of their paths. As in vLLM (`v1/core/block_pool.py`): only full blocks are found again;
blocks that no request references stay until they are overwritten, the first freed first, and of one request the last
block first. A request frees its path from the leaf, so the end of a segment is overwritten first, and always before the
segments above it. The resident blocks of a segment are therefore a prefix of it, and one number describes them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from agentserving_simulator.cost_model import BLOCK_SIZE


class Segment:
    """Tokens [start, end) of a context, and the blocks that become full within it."""

    __slots__ = ("at_host", "end", "filler", "first", "holders", "last", "resident")

    def __init__(self, start: int, end: int, block_size: int = BLOCK_SIZE) -> None:
        self.end = end
        self.first, self.last = start // block_size, end // block_size
        self.resident = 0
        self.holders = 0
        self.at_host = 0
        # The request that fills it. Another one that computes the same tokens in parallel uses private blocks.
        self.filler: object | None = None


Path = Sequence[Segment]


class Holding:
    """What a running request references: segments of its path, and private blocks, which are not full or not shared."""

    __slots__ = ("blocks", "filled", "path", "pinned", "private")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blocks = 0
        self.private = 0
        self.pinned: list[Segment] = []
        # Index of the first segment of the path that this request has not completed.
        self.filled = 0


class ContextCache:
    """`size` blocks on the GPU, and `host_blocks` in host memory behind them (0 = evicted KV is lost)."""

    def __init__(self, size: int, *, block_size: int = BLOCK_SIZE, host_blocks: int = 0, reuse: bool = True) -> None:
        self.size, self.block_size, self.host_blocks = size, block_size, host_blocks
        self._reuse = reuse
        self.used = 0
        self._cached = 0
        self._idle: OrderedDict[Segment, None] = OrderedDict()
        self._host: OrderedDict[Segment, None] = OrderedDict()
        self._host_used = 0
        self.evicted_blocks = 0

    @property
    def free(self) -> int:
        """Blocks that no request references, cached ones included (vLLM's `get_num_free_blocks`)."""
        return self.size - self.used

    def find(self, path: Path, most_tokens: int) -> tuple[int, int]:
        """(blocks found on the GPU, further blocks found in host memory) of a path's first `most_tokens` tokens."""
        if not self._reuse:
            return 0, 0
        found = loaded = 0
        if not self.host_blocks:
            for segment in path:
                found += segment.resident
                if segment.resident < segment.last - segment.first:
                    break
            return min(found, most_tokens // self.block_size), 0
        for segment in path:
            blocks = segment.last - segment.first
            if not loaded:
                found += segment.resident
                if segment.resident == blocks:
                    continue
            here = 0 if loaded else segment.resident
            loaded += max(0, segment.at_host - here)
            if max(here, segment.at_host) < blocks:
                break
        most = most_tokens // self.block_size
        found = min(found, most)
        return found, min(loaded, most - found)

    def idle(self, path: Path, found: int) -> int:
        """How many of the first `found` blocks no request references: these count as free."""
        idle = 0
        for segment in path:
            if found <= 0:
                break
            resident = segment.resident
            found -= resident
            if not segment.holders:
                idle += resident
        return idle

    def hold(self, path: Path, found: int) -> Holding:
        """A request starts: it references the first `found` blocks, as returned by `find`."""
        self._touch_host(path)
        held = Holding(path)
        held.blocks = found
        for segment in path:
            if found <= 0:
                break
            resident = segment.resident
            if not segment.holders and resident:
                self._in_use(segment)
            segment.holders += 1
            held.pinned.append(segment)
            found -= resident
            if resident < segment.last - segment.first:
                # Resident in part: this request continues to fill it, unless another one does.
                segment.filler = segment.filler or held
                break
            held.filled += 1
        return held

    def _in_use(self, segment: Segment) -> None:
        """The resident blocks of a segment that no request has referenced are referenced from now on."""
        del self._idle[segment]
        self._cached -= segment.resident
        self.used += segment.resident

    def grow(self, held: Holding, tokens: int) -> bool:
        """Allocates blocks for `tokens` computed tokens of the request; False, and no change, if too few are free."""
        need = -(-tokens // self.block_size) - held.blocks
        if need > self.free:
            return False
        if need > 0:
            self.take(need)
            held.blocks += need
            held.private += need
        return True

    def take(self, blocks: int) -> None:
        """Holding `blocks` more blocks, overwriting the longest idle ones. The caller has checked `free`."""
        self.used += blocks
        while self.used + self._cached > self.size:
            segment = next(iter(self._idle))
            goes = min(segment.resident, self.used + self._cached - self.size)
            segment.resident -= goes
            self._cached -= goes
            self.evicted_blocks += goes
            if not segment.resident:
                del self._idle[segment]

    def settle(self, held: Holding, tokens: int) -> None:
        """The request has computed `tokens` tokens: the full blocks of its path can be found from now on."""
        if not self._reuse:
            return
        path, full = held.path, tokens // self.block_size
        while held.filled < len(path):
            segment = path[held.filled]
            if segment.first >= full:
                break
            if segment.filler is None and not segment.resident:
                segment.filler = held
                segment.holders += 1
                held.pinned.append(segment)
            if segment.filler is held:
                fresh = max(0, min(full, segment.last) - segment.first - segment.resident)
                segment.resident += fresh
                held.private -= fresh
                self._to_host(segment)
            if full < segment.last:
                break
            if segment.filler is held:
                segment.filler = None
            held.filled += 1

    def release(self, held: Holding, tokens: int) -> None:
        """The request ends or is preempted with `tokens` tokens computed."""
        self.settle(held, tokens)
        self._touch_host(held.path)
        for segment in reversed(held.pinned):
            segment.holders -= 1
            if segment.filler is held:
                segment.filler = None
            if not segment.holders and segment.resident:
                self.used -= segment.resident
                self._cached += segment.resident
                self._idle[segment] = None
        self.used -= held.private

    def refresh(self, path: Path) -> None:
        """Makes the unreferenced segments of a path the last ones to be overwritten, the end of the path first."""
        for segment in reversed(path):
            if segment in self._idle:
                self._idle.move_to_end(segment)

    def _touch_host(self, path: Path) -> None:
        """Makes the segments of a path the last ones to leave host memory, the end of the path first.

        As vLLM's LRUCachePolicy (v1/kv_offload/cpu/policies/lru.py), which ranks blocks by the last request that looked
        them up or ended with them, not by the time at which they were written.
        """
        for segment in reversed(path) if self.host_blocks else ():
            if segment in self._host:
                self._host.move_to_end(segment)

    def _to_host(self, segment: Segment) -> None:
        """Writes computed blocks through to the host (vLLM's offloading connector), overwriting the longest unused."""
        if not self.host_blocks or segment.resident <= segment.at_host:
            return
        self._host_used += segment.resident - segment.at_host
        segment.at_host = segment.resident
        self._host[segment] = None
        self._host.move_to_end(segment)
        while self._host_used > self.host_blocks:
            oldest, _ = self._host.popitem(last=False)
            self._host_used -= oldest.at_host
            oldest.at_host = 0
