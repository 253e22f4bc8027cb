"""Delays grow from the first to the maximum, and are spread."""

from __future__ import annotations

import pytest
from agentserving.transport.backoff import Backoff
from hypothesis import given
from hypothesis import strategies as st


def test_delays_double_up_to_the_maximum() -> None:
    backoff = Backoff(first_s=0.1, max_s=1.0, jitter=0)
    assert [backoff.delay_s(failures) for failures in range(6)] == [0.0, 0.1, 0.2, 0.4, 0.8, 1.0]


@given(failures=st.integers(1, 10**9), share=st.floats(0, 1, exclude_max=True))
def test_a_delay_is_between_the_jittered_bounds(failures: int, share: float) -> None:
    backoff = Backoff(first_s=0.1, max_s=2.0, jitter=0.5)
    exact = Backoff(first_s=0.1, max_s=2.0, jitter=0).delay_s(failures)
    assert exact / 2 <= backoff.delay_s(failures, lambda: share) <= exact


@pytest.mark.parametrize(("first_s", "max_s", "jitter"), [(0, 1, 0), (2, 1, 0), (1, 2, 1.5), (float("nan"), 1, 0)])
def test_values_that_make_no_sense_are_refused(first_s: float, max_s: float, jitter: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Backoff(first_s=first_s, max_s=max_s, jitter=jitter)
