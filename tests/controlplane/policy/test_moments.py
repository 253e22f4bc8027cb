"""Mean, spread and residual of the sizes of programs."""

from __future__ import annotations

import pytest
from agentserving_controlplane.policy.gittins import MIN_SIZE_US
from agentserving_controlplane.policy.moments import Moments
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.integers(1, 10**12), min_size=1), st.lists(st.integers(0, 10**12)))
def test_stretch_is_at_least_one(finished: list[int], live: list[int]) -> None:
    assert Moments.of([max(each, MIN_SIZE_US) for each in finished], live).stretch >= 1 - 1e-9


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=60))
def test_the_moments_of_programs_that_all_finished_are_those_of_their_sizes(sizes: list[int]) -> None:
    moments = Moments.of(sizes, ())
    mean = sum(sizes) / len(sizes)
    assert moments.mean == pytest.approx(mean, rel=1e-6)
    assert moments.square == pytest.approx(sum(size * size for size in sizes) / len(sizes), rel=1e-6)
    assert moments.residual >= mean / 2 * (1 - 1e-6)
