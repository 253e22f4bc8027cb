"""What a preemption may cost: the time that a newcomer would wait for a slot, and a share of all time. Pure."""

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


class Allowance:
    """A `share` of the time that passes may be spent, `burst_us` of it at once; may be overdrawn by one spending."""

    def __init__(self, share: float, burst_us: float) -> None:
        self._share, self._burst_us = share, burst_us
        self._left_us = burst_us
        self._seen_us: int | None = None

    def left_us(self, now_us: int) -> float:
        """What may be spent now."""
        if self._seen_us is not None:
            self._left_us = min(self._burst_us, self._left_us + self._share * max(0, now_us - self._seen_us))
        self._seen_us = now_us
        return self._left_us

    def spend(self, cost_us: float) -> None:
        """So much has been spent."""
        self._left_us -= cost_us
