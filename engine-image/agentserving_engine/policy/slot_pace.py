"""What a preemption may cost: less than the wait for the next free slot, and a share of all time. Pure."""

from __future__ import annotations

# Weight of the newest interval in the average.
_SMOOTHING = 0.1
# A preemption must save this many times its cost (measured: 2 is best or near it for resume costs of 1 to 12 ms).
PAYBACK = 2
# All preemptions together may cost this share of the engine's time, with this burst. Where preempted calls lose their
# KV no call ever ends, every new call seems to wait for ever, and each single preemption seems to pay.
RECOMPUTE_SHARE, RECOMPUTE_BURST_US = 0.1, 1_000_000.0


class SlotPace:
    """How often slots come free, learned from the ends of running calls; microseconds on the caller's clock."""

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
        """The average interval between free slots, or the time since the last one if that is longer."""
        if self._last_us is None:
            self._last_us = now_us
        return max(self._interval_us, now_us - self._last_us)


class Allowance:
    """Lets a `share` of the passing time be spent, up to `burst_us` in one go; a single spending may overdraw it."""

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
        """Takes a cost out of the allowance."""
        self._left_us -= cost_us


class PreemptionBudget:
    """The largest cost at which a preemption still pays."""

    def __init__(self) -> None:
        self._pace = SlotPace()
        self._allowance = Allowance(RECOMPUTE_SHARE, RECOMPUTE_BURST_US)

    def slot_free(self, now_us: int) -> None:
        """A running call has ended."""
        self._pace.slot_free(now_us)

    def affordable_us(self, now_us: int, running: int) -> float:
        """Resume cost below which preempting one of `running` calls pays now."""
        return min(self._pace.wait_us(now_us) / (PAYBACK * max(1, running)), self._allowance.left_us(now_us))

    def spend(self, cost_us: float) -> None:
        """A preemption of this cost is made."""
        self._allowance.spend(cost_us)
