"""Random loads are programs of any shape, the same for the same seed."""

from __future__ import annotations

import math
import random
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import random_loads
from benchmarks.random_loads import calls_of, draw_kind, draw_load, measured, programs, shares


@given(st.integers(0, 10_000))
def test_every_program_can_be_run(seed: int) -> None:
    rng = random.Random(seed)
    calls = calls_of(rng, draw_kind(rng))
    for number, call in enumerate(calls):
        assert all(parent < number for parent in call.parents)
        assert call.extends < number
        assert 0 < call.shared_tokens < call.prompt_tokens
        assert call.output_tokens > 0
        assert call.gap_s >= 0


def test_a_seed_gives_the_same_programs_at_every_rate() -> None:
    load = draw_load(5)
    slow, fast = (list(islice(programs(load, rate), 20)) for rate in (0.1, 10.0))
    assert [(each.name, each.calls) for each in slow] == [(each.name, each.calls) for each in fast]
    assert sum(load.shares) == pytest.approx(1)


def test_shares_are_those_of_the_default() -> None:
    assert shares({"auto": (3.0, 0.0), "fcfs": (2.0, 0.0)}, "fcfs") == (1.5, 1.0)
    assert shares({"auto": (3.0, 1.0), "fcfs": (0.0, 2.0)}, "fcfs") == (math.inf, 0.5)


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_load_is_measured_under_each_policy(is_closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOP_S", "FULL_S"):
        monkeypatch.setattr(random_loads, name, 80.0)
    for name in ("WARMUP_S", "FULL_WARMUP_S", "WINDOW_S"):
        monkeypatch.setattr(random_loads, name, 20.0)
    seed = next(each for each in range(100) if bool(draw_load(each).concurrency) is is_closed)
    load, found = measured(seed)
    assert found.keys() == {"fcfs", "program-plas", "auto"}
    assert all(first >= 0 and second > 0 for first, second in found.values())
    assert load == draw_load(seed)
