"""A moment on two clocks. Decisions take it as an argument; clock.py reads it. Pure.

Ages, idle times and limits are differences of `steady_us`, which no step of the wall clock moves. `unix_us` is for
display and for the expiry of tickets.
"""

from __future__ import annotations

from typing import NamedTuple


class Instant(NamedTuple):
    """Microseconds since the Unix epoch, and on the monotonic clock of this process."""

    unix_us: int
    steady_us: int
