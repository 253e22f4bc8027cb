"""The clock of the control plane: one reading of wall time and monotonic time together.

Ages, idle times and limits are differences of `steady_us`, which no clock step moves. `unix_us` is for display and for
the expiry of tickets. Only this module reads the time; decisions take an `Instant` as an argument.
"""

from __future__ import annotations

import time
from typing import NamedTuple


class Instant(NamedTuple):
    """One moment, in microseconds: since the Unix epoch, and on the monotonic clock of this process."""

    unix_us: int
    steady_us: int


def read_clock() -> Instant:
    """The current moment."""
    return Instant(time.time_ns() // 1000, time.monotonic_ns() // 1000)
