"""Gains compare the same programs, their intervals cover noise, and losing groups are named."""

from __future__ import annotations

import random
import statistics

import pytest
from agentserving.contract.ids import ProgramId
from agentserving_replay.results import ProgramResult
from agentserving_replay.tuning.comparison import FIGURES, Pair, gain, gains, group_gains, groups, pairs


def result(number: int, latency_s: float, service_s: float = 1.0, name: str = "a") -> ProgramResult:
    return ProgramResult(
        program_id=ProgramId(f"p{number}"), name=name, arrival_s=float(number), latency_s=latency_s, tool_s=0.0,
        wait_s=0.0, service_s=service_s, calls=1, output_tokens=100, prompt_tokens=10, cached_tokens=0, preemptions=0,
    )  # fmt: skip


def compared(base: list[float], other: list[float]) -> list[Pair]:
    return pairs([result(n, s) for n, s in enumerate(base)], [result(n, s) for n, s in enumerate(other)])


def latency(compared_pairs: list[Pair]) -> tuple[float, float, float]:
    what, value, statistic = FIGURES["latency"]
    measured = gain(what, compared_pairs, value, statistic, random.Random(1))
    return measured.low, measured.gain, measured.high


def test_a_program_is_compared_with_itself_in_any_order_of_ends() -> None:
    base, other = [result(n, 10.0 + n) for n in range(5)], [result(n, 5.0 + n) for n in (3, 1, 0, 4, 2)]
    assert [(pair.base.program_id, pair.other.latency_s) for pair in pairs(base, other)] == [
        (f"p{n}", 5.0 + n) for n in range(5)
    ]


def test_halving_every_latency_is_a_certain_gain_of_a_half() -> None:
    rng = random.Random(2)
    base = [rng.expovariate(0.1) + 1 for _ in range(200)]
    assert latency(compared(base, [s / 2 for s in base])) == pytest.approx((0.5, 0.5, 0.5))


def test_the_interval_covers_noise_nineteen_times_in_twenty() -> None:
    covered = 0
    for seed in range(60):
        rng = random.Random(seed)
        base = [rng.expovariate(0.1) for _ in range(150)]
        low, _, high = latency(compared(base, [rng.expovariate(0.1) for _ in range(150)]))
        covered += low <= 0 <= high
    assert 48 <= covered <= 60


def test_programs_that_wait_together_widen_the_interval() -> None:
    rng = random.Random(3)
    waves = [10.0 if number // 20 % 2 else 1.0 for number in range(400)]
    other = [s * (0.5 if s > 5 else 1.3) for s in waves]
    order = rng.sample(range(400), 400)
    together = latency(compared(waves, other))
    mixed = latency(compared([waves[i] for i in order], [other[i] for i in order]))
    assert together[2] - together[0] > 1.5 * (mixed[2] - mixed[0])


def test_every_figure_is_compared_and_deterministic() -> None:
    rng = random.Random(4)
    base = [rng.expovariate(0.1) + 1 for _ in range(100)]
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


def test_losing_groups_are_named() -> None:
    base = [result(n, 10.0 + n / 10, service_s=float(n)) for n in range(100)]
    other = [result(n, 20.0 + n / 10 if n >= 90 else 5.0 + n / 10) for n in range(100)]
    by_group = {each.what: each for each in group_gains(pairs(base, other), random.Random(0))}
    assert by_group["largest tenth"].is_loss
    assert by_group["smallest tenth"].is_gain
    assert statistics.fmean([by_group["largest tenth"].gain]) < 0


def test_a_comparison_without_programs_is_refused() -> None:
    with pytest.raises(ValueError, match="no program to compare"):
        latency([])
