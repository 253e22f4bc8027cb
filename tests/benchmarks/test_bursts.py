"""Arrivals in bursts."""

from __future__ import annotations

import random
import statistics
from itertools import islice, pairwise

import pytest

from benchmarks.paper.bursts import bursts, gaps_ms


@pytest.mark.parametrize("rate", [0.25, 0.6, 10.0])
def test_bursts_have_the_rate_asked_for_and_the_variation_of_the_trace(rate: float) -> None:
    hour = len(gaps_ms())
    times = list(islice(bursts(random.Random(1), rate), hour + 1))
    gaps = [after - before for before, after in pairwise(times)]
    assert times == sorted(times)
    assert hour / (times[-1] - times[0]) == pytest.approx(rate, rel=1e-6)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(13.15, abs=0.05)


def test_each_seed_begins_elsewhere_and_the_hour_goes_round() -> None:
    one, other = (list(islice(bursts(random.Random(seed), 1.0), 20_000)) for seed in (1, 2))
    assert one[:100] != other[:100]
    hour = len(gaps_ms())
    assert one[hour + 50] - one[hour] == pytest.approx(one[50] - one[0])
