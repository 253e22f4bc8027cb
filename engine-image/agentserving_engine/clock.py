"""The plugin's clock: durations and ages are measured with it, never with the wall clock, which may step."""

from __future__ import annotations

import time


def now_us() -> int:
    """Monotonic time, microseconds."""
    return time.monotonic_ns() // 1000
