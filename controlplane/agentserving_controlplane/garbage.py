"""When Python's cycle collector examines the leader's memory.

By default a full collection walks every object whenever their number has grown by a quarter: with 100,000 programs it
stops the event loop for 0.2 to 0.5 s. But rows contain no cycles: reference counts free them. So whatever survives a
collection is moved out of the collector's sight (`gc.freeze`), and each collection looks only at what has come since: a
few milliseconds, however many programs there are. Cycles among frozen objects are found by a complete collection. It is
made once many times as many objects have been frozen as it has to walk.
"""

from __future__ import annotations

import gc
import time

import structlog

log = structlog.get_logger()

# Containers allocated, less those freed, before the youngest generation is examined; and how many such examinations
# precede one of the middle generation, whose survivors are frozen. Python's: 700 and 10.
YOUNG, MIDDLE = 5_000, 5
# Full collections by the collector itself: never.
FULL = 1_000_000_000
# A complete collection walks the objects that are left; it is made when this many times their number has been frozen.
PAID = 10


class Collector:
    """Owns the collector's settings while this process leads. Create it before the store is read: the rows are no
    garbage, and full collections meanwhile would only delay the leader's start."""

    def __init__(self) -> None:
        gc.set_threshold(YOUNG, MIDDLE, FULL)
        # At most so many objects have been frozen since the last complete collection; so many were left by that one.
        self._since = self._left = 0

    def freeze(self) -> None:
        """What there is will be examined by the next complete collection only; from now on, survivors join it."""
        gc.freeze()
        self._since, self._left = 0, gc.get_freeze_count()
        if self._collected not in gc.callbacks:
            gc.callbacks.append(self._collected)

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        """The collector calls this around each collection."""
        if phase == "stop" and info["generation"] == 1:
            gc.freeze()
            self._since += YOUNG * MIDDLE

    def round(self) -> None:
        """To be called from time to time: a complete collection, if it has been paid for."""
        if self._since <= PAID * max(self._left, YOUNG * MIDDLE):
            return
        began = time.monotonic()
        gc.unfreeze()
        freed = gc.collect()
        self.freeze()
        log.info("all memory examined", objects=self._left, freed=freed, seconds=time.monotonic() - began)
