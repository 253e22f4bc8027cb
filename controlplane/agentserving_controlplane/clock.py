"""The clock of the control plane: one reading of wall time and monotonic time together.

Only this module reads the time; decisions take an `Instant` as an argument.
"""

from __future__ import annotations

import time

from agentserving_controlplane.instant import Instant


def read_clock() -> Instant:
    """The current moment."""
    return Instant(time.time_ns() // 1000, time.monotonic_ns() // 1000)
