"""A priority queue of keys in which moving or removing a key is cheap. Pure.

Entries of the heap are never searched for. Pushing a key again, or discarding it, makes its earlier entry stale; stale
entries are dropped when they reach the top, and all of them when they outnumber the live ones. So the heap holds at
most `2 * len(self) + SLACK` entries, however often keys move.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

P = TypeVar("P")

# Stale entries tolerated in a heap that is nearly empty, so that compaction stays rare.
SLACK = 64


class LazyHeap(Generic[P]):
    """Keys by priority, lowest first; equal priorities in the order of their pushes."""

    __slots__ = ("_heap", "_live", "_serial")

    def __init__(self, changes: int = 0) -> None:
        """`changes`: those of the order that this one takes the place of."""
        self._heap: list[tuple[P, int, str]] = []
        # Serial number of each key's live entry.
        self._live: dict[str, int] = {}
        # Counts pushes and removals.
        self._serial = changes

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, key: object) -> bool:
        return key in self._live

    @property
    def entries(self) -> int:
        """Entries of the heap, stale ones included."""
        return len(self._heap)

    @property
    def changes(self) -> int:
        """Grows with each push and removal: a reader that saved part of the order sees whether it is still right."""
        return self._serial

    def push(self, key: str, priority: P) -> None:
        """Adds a key, or moves it; O(log n)."""
        serial = self._serial = self._serial + 1
        heap, live = self._heap, self._live
        live[key] = serial
        heapq.heappush(heap, (priority, serial, key))
        if len(heap) > 2 * len(live) + SLACK:
            self._compact()

    def discard(self, key: str) -> None:
        """Removes a key if it is there; amortised O(1)."""
        if self._live.pop(key, None) is not None:
            self._serial += 1
            if len(self._heap) > 2 * len(self._live) + SLACK:
                self._compact()

    def clear(self) -> None:
        """Removes all keys."""
        self._heap.clear()
        self._live.clear()
        self._serial += 1

    def first(self) -> tuple[P, str] | None:
        """(priority, key) of the first key, which stays; None when there is none."""
        heap, live = self._heap, self._live
        while heap:
            priority, serial, key = heap[0]
            if live.get(key) == serial:
                return priority, key
            heapq.heappop(heap)
        return None

    def first_keys(self, count: int) -> list[str]:
        """The first `count` keys, or all if there are fewer; O(count log n), O(1) for one."""
        if count == 1:
            found = self.first()
            return [] if found is None else [found[1]]
        with contextlib.closing(self.walk()) as keys:
            return list(itertools.islice(keys, count))

    def pop(self) -> tuple[P, str] | None:
        """Removes and returns the first key with its priority; None when there is none."""
        found = self.first()
        if found is not None:
            heapq.heappop(self._heap)
            del self._live[found[1]]
            self._serial += 1
        return found

    def __iter__(self) -> Iterator[str]:
        """Keys in order, O(log n) for each one taken. Nothing may be pushed or discarded meanwhile."""
        return self.walk()

    def walk(self) -> Generator[str, None, None]:
        """`__iter__`, as a generator to be closed by who takes only some keys."""
        heap, live = self._heap, self._live
        taken: list[tuple[P, int, str]] = []
        try:
            while heap:
                entry = heapq.heappop(heap)
                if live.get(entry[2]) == entry[1]:
                    taken.append(entry)
                    yield entry[2]
        finally:
            for entry in taken:
                heapq.heappush(heap, entry)

    def _compact(self) -> None:
        heap, live = self._heap, self._live
        heap[:] = [entry for entry in heap if live.get(entry[2]) == entry[1]]
        heapq.heapify(heap)
