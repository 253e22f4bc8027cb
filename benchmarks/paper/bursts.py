"""Arrivals as bursty as a real service's: the gaps between code completions that one had in an hour.

8,818 gaps, coefficient of variation 13 (a Poisson stream has 1). They are stretched to the rate that is asked for,
which keeps the variation; each seed begins elsewhere in the hour, and behind its end the hour begins anew.
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
    """Milliseconds between one arrival and the next."""
    with gzip.open(FILE, "rt") as lines:
        return tuple(int(line) for line in lines)


def bursts(dice: random.Random, rate_per_s: float) -> Iterator[float]:
    """Arrival times, seconds, without end; `rate_per_s` of them a second over the whole hour."""
    gaps = gaps_ms()
    stretch = len(gaps) / (rate_per_s * sum(gaps))
    at, now = dice.randrange(len(gaps)), 0.0
    while True:
        now += gaps[at] * stretch
        at = (at + 1) % len(gaps)
        yield now
