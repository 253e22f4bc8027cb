"""When Python's cycle collector examines the leader's memory.

By default a full collection walks every object whenever their number has grown by a quarter: with 100,000 programs it
stops the event loop for 0.2 to 0.5 s, and with few programs it takes a third of the CPU of a busy leader. But rows
contain no cycles: reference counts free them. So what has survived is moved out of the collector's sight
(`gc.freeze`), and each round looks only at what has come since. Cycles among frozen objects are found by a complete
collection, once as many objects have been frozen as that collection has to walk: it is paid by what was allocated.
"""

from __future__ import annotations

import gc
import time

import structlog

log = structlog.get_logger()

# Containers allocated, less those freed, before the youngest generation is examined; and how many such examinations
# precede one of the middle generation. Python's: 700 and 10.
YOUNG, MIDDLE = 10_000, 10
# Never by itself: `Collector.round` decides.
FULL = 1_000_000_000


class Collector:
    """Owns the collector's settings while this process leads. Create it before the store is read: the rows are no
    garbage, and collections meanwhile would only delay the leader's start."""

    def __init__(self) -> None:
        gc.set_threshold(YOUNG, MIDDLE, FULL)
        # At most so many objects have been frozen since the last complete collection; so many were left by that one.
        self._since = self._left = 0

    def freeze(self) -> None:
        """What there is will be examined by the next complete collection only."""
        gc.freeze()
        self._since, self._left = 0, gc.get_freeze_count()

    def round(self) -> None:
        """To be called from time to time; costs nothing until enough has been allocated."""
        examined = gc.get_count()[2]
        if not examined:
            return
        self._since += examined * YOUNG * MIDDLE
        if self._since <= max(self._left, YOUNG * MIDDLE):
            gc.collect()
            gc.freeze()
            return
        began = time.monotonic()
        gc.unfreeze()
        freed = gc.collect()
        self.freeze()
        log.info("all memory examined", objects=self._left, freed=freed, seconds=time.monotonic() - began)
