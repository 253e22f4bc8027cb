"""A moment on two clocks. Pure: `clock.read_clock` reads them.

Ages, idle times and limits are differences of `steady_us`, which no clock step moves. `unix_us` is for display and for
the expiry of tickets.
"""

from __future__ import annotations

from typing import NamedTuple


class Instant(NamedTuple):
    """One moment, in microseconds: since the Unix epoch, and on the monotonic clock of this process."""

    unix_us: int
    steady_us: int
