"""Gains are of the same programs, their intervals cover chance, and who loses is named."""

from __future__ import annotations

import random
import statistics

import pytest
from agentserving_replay.cluster import ProgramResult
from agentserving_replay.tuning.gain import FIGURES, Pair, gain, gains, group_gains, groups, pairs


def result(number: int, latency_s: float, service_s: float = 1.0, name: str = "a") -> ProgramResult:
    return ProgramResult(name, float(number), latency_s, 0.0, 0.0, service_s, 1, 100, 10, 0, 0, f"p{number}")


def compared(base: list[float], other: list[float]) -> list[Pair]:
    return pairs([result(n, s) for n, s in enumerate(base)], [result(n, s) for n, s in enumerate(other)])


def latency(of: list[Pair]) -> tuple[float, float, float]:
    what, value, over = FIGURES["latency"]
    found = gain(what, of, value, over, random.Random(1))
    return found.low, found.gain, found.high


def test_a_program_is_compared_with_itself_whatever_the_order_of_ends() -> None:
    base, other = [result(n, 10.0 + n) for n in range(5)], [result(n, 5.0 + n) for n in (3, 1, 0, 4, 2)]
    assert [(pair.base.program_id, pair.other.latency_s) for pair in pairs(base, other)] == [
        (f"p{n}", 5.0 + n) for n in range(5)
    ]


def test_halving_every_latency_is_a_sure_gain_of_a_half() -> None:
    dice = random.Random(2)
    base = [dice.expovariate(0.1) + 1 for _ in range(200)]
    assert latency(compared(base, [s / 2 for s in base])) == pytest.approx((0.5, 0.5, 0.5))


def test_chance_is_covered_by_the_interval_nineteen_times_in_twenty() -> None:
    covered = 0
    for seed in range(60):
        dice = random.Random(seed)
        base = [dice.expovariate(0.1) for _ in range(150)]
        low, _, high = latency(compared(base, [dice.expovariate(0.1) for _ in range(150)]))
        covered += low <= 0 <= high
    assert 48 <= covered <= 60


def test_neighbours_that_wait_together_make_a_wider_interval_than_strangers() -> None:
    dice = random.Random(3)
    waves = [10.0 if number // 20 % 2 else 1.0 for number in range(400)]
    other = [s * (0.5 if s > 5 else 1.3) for s in waves]
    order = dice.sample(range(400), 400)
    together = latency(compared(waves, other))
    mixed = latency(compared([waves[i] for i in order], [other[i] for i in order]))
    assert together[2] - together[0] > 1.5 * (mixed[2] - mixed[0])


def test_all_figures_are_told_and_deterministic() -> None:
    dice = random.Random(4)
    base = [dice.expovariate(0.1) + 1 for _ in range(100)]
    of = compared(base, [s * 0.9 for s in base])
    assert gains(of, random.Random(0)) == gains(of, random.Random(0))
    assert set(gains(of, random.Random(0))) == set(FIGURES)


def test_groups_are_tenths_by_service_and_classes_large_enough() -> None:
    base = [result(n, 10.0, service_s=float(n), name="abc"[n % 2 if n < 99 else 2]) for n in range(100)]
    found = groups(pairs(base, base))
    assert [len(members) for members in found.values()] == [10, 80, 10, 50, 49]
    assert max(pair.base.service_s for pair in found["smallest tenth"]) == 9
    assert min(pair.base.service_s for pair in found["largest tenth"]) == 90
    assert "class c" not in found


def test_who_loses_is_told() -> None:
    base = [result(n, 10.0 + n / 10, service_s=float(n)) for n in range(100)]
    other = [result(n, 20.0 + n / 10 if n >= 90 else 5.0 + n / 10) for n in range(100)]
    told = {each.what: each for each in group_gains(pairs(base, other), random.Random(0))}
    assert told["largest tenth"].sure_loss
    assert told["smallest tenth"].sure
    assert statistics.fmean([told["largest tenth"].gain]) < 0


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="no program to compare"):
        latency([])
