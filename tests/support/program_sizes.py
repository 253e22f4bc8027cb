"""Sizes of finished and live programs by class, for tests of policies that learn them."""

from __future__ import annotations

import math
from statistics import NormalDist

from agentserving_controlplane.policy.gittins import Sizes

SECOND = 1_000_000


def sizes_of(finished: dict[str, list[float]], live: dict[str, list[float]] | None = None) -> Sizes:
    known = Sizes()
    for class_name, sizes in finished.items():
        for size in sizes:
            known.end(class_name, round(size * SECOND))
    known.go_on((name, round(size * SECOND)) for name, sizes in (live or {}).items() for size in sizes)
    return known


def spread(cv2: float, mean: float = 10.0, count: int = 400) -> list[float]:
    """Quantiles of a lognormal distribution with this squared coefficient of variation; theirs is a little smaller."""
    sigma, normal = math.sqrt(math.log(1 + cv2)), NormalDist()
    quantiles = (normal.inv_cdf((index + 0.5) / count) for index in range(count))
    return [mean * math.exp(sigma * each - sigma * sigma / 2) for each in quantiles]
