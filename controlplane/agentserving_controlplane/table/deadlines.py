"""Which rows upkeep must look at, and when. Pure.

A row that changes in a way that may bring its end nearer is marked; activity only postpones it. Marked rows are
scheduled at the next round, and a row whose time has come is looked at again: if it has been active since, it gets a
later time. So a round costs what has changed and what is due, however many rows there are.
"""

from __future__ import annotations

import heapq

from agentserving.contract.ids import ProgramKey


class Deadlines:
    """Marked rows, and a heap of (time, key) in microseconds of the monotonic clock."""

    def __init__(self) -> None:
        self._marked: dict[ProgramKey, None] = {}
        self._heap: list[tuple[int, ProgramKey]] = []
        # The earliest time of each row in the heap; other entries of it are void.
        self._at: dict[ProgramKey, int] = {}

    def mark(self, key: ProgramKey) -> None:
        """The row is to be scheduled."""
        self._marked[key] = None

    def pop_marked(self) -> ProgramKey | None:
        """The next marked row, which is then marked no longer."""
        return self._marked.popitem()[0] if self._marked else None

    def schedule(self, key: ProgramKey, due_us: int) -> None:
        """The row is to be looked at once this time has passed."""
        known = self._at.get(key)
        if known is None or due_us < known:
            self._at[key] = due_us
            heapq.heappush(self._heap, (due_us, key))

    def pop_due(self, now_us: int) -> ProgramKey | None:
        """A row whose time has passed; it is then scheduled no longer."""
        while self._heap and self._heap[0][0] < now_us:
            due_us, key = heapq.heappop(self._heap)
            if self._at.get(key) == due_us:
                del self._at[key]
                return key
        return None
