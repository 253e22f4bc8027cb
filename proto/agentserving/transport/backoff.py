"""How long to wait before another attempt: exponential, bounded and spread, so that clients do not retry in step.

Pure: the source of randomness is an argument, and the caller counts failures and sleeps.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

# Beyond this exponent every delay has reached its maximum; 2.0 ** 1024 would overflow.
_MAX_EXPONENT = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Delays in seconds: `first_s` after the first failure, doubled after each further one, never more than `max_s`.

    `jitter` is the share of a delay that is random: 0 = exact, 0.5 = between half of it and all of it.
    """

    first_s: float
    max_s: float
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.first_s <= self.max_s or not 0 <= self.jitter <= 1:
            raise ValueError(f"{self}: first_s must be positive and at most max_s, jitter between 0 and 1")

    def delay_s(self, failures: int, uniform: Callable[[], float] = random.random) -> float:
        """The delay after this many failures in a row; 0 after none. `uniform` gives numbers in [0, 1)."""
        if failures <= 0:
            return 0.0
        longest = min(self.max_s, self.first_s * 2.0 ** min(failures - 1, _MAX_EXPONENT))
        return longest * (1.0 - self.jitter * uniform())
