"""What the policy knows of an engine's KV cache: its size, what is found again, and the blocks of a request. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from agentserving.contract.kv_obstacles import KvObstacle


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """Groups of layers in one pool of blocks; each has a block of its own for each block's worth of tokens.

    Layers with full attention need all blocks of a context, layers with a sliding window only its newest ones.
    """

    # Groups with full attention.
    full: int = 1
    # For each group with a window: how many of the newest blocks it needs to continue a context.
    windows: tuple[int, ...] = ()

    @property
    def groups(self) -> int:
        """Groups with full attention and groups with a window."""
        return self.full + len(self.windows)

    def held(self, units: int) -> int:
        """Blocks of the pool in which the first `units` blocks' worth of tokens of a context are cached."""
        return self.full * units + sum(min(units, window) for window in self.windows)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvTraits:
    """What happens to KV that no request references."""

    block_size: int
    # Of the whole cache.
    blocks: int
    # A later prompt finds it again (prefix caching).
    findable: bool
    # Evicted KV is loaded from elsewhere, in parallel to the batch: losing it costs no step.
    reloadable: bool
    # What stands against retention (`Memory` must find contexts); None = nothing.
    retention_obstacle: KvObstacle | None = None
    # What stands against a working set (`Engine.context` must give what `Memory` knows, exactly); None = nothing.
    working_set_obstacle: KvObstacle | None = None
    # Blocks of the tier that evicted KV is loaded from; 0 = none, or of unknown size.
    host_blocks: int = 0
    layout: KvLayout = KvLayout()

    def needed(self, tokens: int) -> int:
        """Blocks that a request of so many tokens needs to run. A window rarely begins where a block does."""
        units, layout = tokens // self.block_size + 1, self.layout
        return layout.full * units + sum(min(units, window + 1) for window in layout.windows)

    def taken(self, tokens: int) -> int:
        """Free blocks that computing so many tokens takes."""
        return tokens // self.block_size * self.layout.groups
