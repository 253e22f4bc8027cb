"""Arrivals as bursty as a real service's: the gaps between code completion requests within one hour.

8,818 gaps with a coefficient of variation of 13 (a Poisson stream has 1). They are stretched to the requested rate,
which preserves the variation. Each seed starts at another place of the hour, and the hour repeats.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

FILE = Path(__file__).parent / "data" / "azure_code_gaps_ms.txt.gz"


@cache
def gaps_ms() -> tuple[int, ...]:
    """Milliseconds between consecutive arrivals."""
    with gzip.open(FILE, "rt") as lines:
        return tuple(int(line) for line in lines)


def bursts(rng: random.Random, rate_per_s: float) -> Iterator[float]:
    """Endless arrival times in seconds; `rate_per_s` per second on average over the whole hour."""
    gaps = gaps_ms()
    stretch = len(gaps) / (rate_per_s * sum(gaps))
    at, now = rng.randrange(len(gaps)), 0.0
    while True:
        now += gaps[at] * stretch
        at = (at + 1) % len(gaps)
        yield now
