"""agentserving_engine.policy.Memory over the context cache: contexts are paths of segments. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import cast

from agentserving_simulator.virtual.context_cache import ContextCache, Segment


class PathMemory:
    """The units of a context are the segments of a ContextCache."""

    def __init__(self, cache: ContextCache) -> None:
        self._cache = cache

    def common(self, one: Sequence[object], other: Sequence[object]) -> int:
        """Number of leading segments that the two share."""
        shared = 0
        for a, b in zip(one, other, strict=False):
            if a is not b:
                break
            shared += 1
        return shared

    def idle(self, context: Sequence[object], first: int) -> int:
        """Blocks of the segments from `first` on that are cached and referenced by no request."""
        blocks = 0
        segments: Iterable[Segment] = context  # type: ignore[assignment]
        for segment in islice(segments, first, None) if first else segments:
            if not segment.holders:
                blocks += segment.resident
        return blocks

    def blocks_of(self, unit: object) -> int:
        """Blocks that become full within the segment."""
        segment = cast(Segment, unit)
        return segment.last - segment.first

    def refresh(self, context: Sequence[object], first: int) -> None:
        """Makes those blocks the last ones to be overwritten."""
        self._cache.refresh(cast(Sequence[Segment], context)[first:])
