"""How long a newcomer would wait for a slot, were nobody preempted for it. Pure."""

from __future__ import annotations

_SMOOTHING = 0.1


class SlotPace:
    """Learns from the ends of running calls; microseconds on the caller's clock."""

    def __init__(self) -> None:
        self._last_us: int | None = None
        self._interval_us = 0.0

    def slot_free(self, now_us: int) -> None:
        """A running call has ended."""
        if self._last_us is not None:
            interval = now_us - self._last_us
            self._interval_us += (interval - self._interval_us) * (_SMOOTHING if self._interval_us else 1)
        self._last_us = now_us

    def wait_us(self, now_us: int) -> float:
        """As long as slots take on average, or as it has taken already when none has come free for longer."""
        if self._last_us is None:
            self._last_us = now_us
        return max(self._interval_us, now_us - self._last_us)
