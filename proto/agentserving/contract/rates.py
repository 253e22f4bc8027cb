"""How much may be used in a time: token buckets, and what is left of them. Pure: time is an argument.

A bucket holds a minute's worth and fills steadily, so bursts up to the bound are taken at once. An amount that is
larger than a whole bucket passes when the bucket is full, and is paid off afterwards: it would else never pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

# Units of a rate. Gateways count prompts only, whose tokens they estimate; the leader counts prompts and answers.
REQUESTS, INPUT_TOKENS, TOKENS = "requests", "input-tokens", "tokens"


class Rate(NamedTuple):
    """What is left of one bound. `reset_s`: seconds until all of it is available again."""

    unit: str
    limit: int
    remaining: int
    reset_s: float


@dataclass(init=False, slots=True)
class Bucket:
    """`per_minute` units at most in the bucket, and as many a minute flow in. Full at first."""

    per_minute: int
    _level: float
    _at_s: float

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._level, self._at_s = float(per_minute), now_s

    def level(self, now_s: float) -> float:
        """What is in it; negative after a large request."""
        filled = max(0.0, now_s - self._at_s) * self.per_minute / 60
        return min(float(self.per_minute), self._level + filled)

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until an amount may be taken; 0 = now."""
        missing = min(amount, self.per_minute) - self.level(now_s)
        return max(0.0, missing * 60 / self.per_minute)

    def take(self, amount: float, now_s: float) -> None:
        """Takes an amount; a negative one gives back."""
        self._level, self._at_s = min(float(self.per_minute), self.level(now_s) - amount), max(now_s, self._at_s)

    def rate(self, unit: str, now_s: float) -> Rate:
        """What is left of it."""
        level = self.level(now_s)
        full_in_s = (self.per_minute - level) * 60 / self.per_minute
        return Rate(unit, self.per_minute, max(0, math.floor(level)), full_in_s)
