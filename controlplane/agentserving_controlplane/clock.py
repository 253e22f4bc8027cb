"""The only reader of the time, so that a test or virtual time can replace it."""

from __future__ import annotations

import time

from agentserving_controlplane.instant import Instant


def read_clock() -> Instant:
    """The present moment."""
    return Instant(time.time_ns() // 1000, time.monotonic_ns() // 1000)
