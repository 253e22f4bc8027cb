"""What the retention of contexts asks about the KV cache, answered of paths of segments. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import cast

from agentserving_simulator.virtual.context_cache import ContextCache, Segment


class PathMemory:
    """agentserving_engine.policy.retention.Memory over a ContextCache; contexts are its paths."""

    def __init__(self, cache: ContextCache) -> None:
        self._cache = cache

    def common(self, one: Sequence[object], other: Sequence[object]) -> int:
        """Leading segments that both have."""
        return next(
            (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a is not b), min(len(one), len(other))
        )

    def idle(self, context: Sequence[object], first: int) -> int:
        """Blocks of the segments from `first` on that are cached and that nobody holds."""
        return sum(segment.resident for segment in _segments(context, first) if not segment.holders)

    def refresh(self, context: Sequence[object], first: int) -> None:
        """Makes those the last ones to be evicted."""
        self._cache.refresh(list(_segments(context, first)))


def _segments(context: Sequence[object], first: int) -> islice[Segment]:
    return islice(cast(Sequence[Segment], context), first, None)
