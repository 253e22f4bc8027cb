"""Rates of a key: what passes stays within the bound, and what is refused passes after the announced time."""

from __future__ import annotations

import pytest
from agentserving.contract.rates import INPUT_TOKENS, REQUESTS, TOKENS, Bucket, Rate
from agentserving_gateway.errors import HttpError
from agentserving_gateway.rates import UNLIMITED, Limits, Rates, headers
from hypothesis import given
from hypothesis import strategies as st

BOUND = st.integers(1, 10_000)
# Seconds until the next request, and its size.
SENT = st.lists(st.tuples(st.floats(0, 90), st.integers(0, 20_000)), min_size=1, max_size=60)


@given(BOUND, SENT)
def test_no_span_of_time_gets_more_than_the_bound_and_one_request(
    per_minute: int, requests: list[tuple[float, int]]
) -> None:
    bucket, now, taken = Bucket(per_minute, 0.0), 0.0, []
    for pause, amount in requests:
        now += pause
        if bucket.wait_s(amount, now) == 0:
            bucket.take(amount, now)
            taken.append((now, amount))
    for first, (began, _) in enumerate(taken):
        for last in range(first, len(taken)):
            ended, largest = taken[last][0], max(amount for _, amount in taken[first : last + 1])
            total = sum(amount for _, amount in taken[first : last + 1])
            assert total <= per_minute * (1 + (ended - began) / 60) + largest + 1e-6


@given(BOUND, SENT)
def test_a_refused_request_passes_after_its_wait_and_not_before(
    per_minute: int, requests: list[tuple[float, int]]
) -> None:
    bucket, now = Bucket(per_minute, 0.0), 0.0
    for pause, amount in requests:
        now += pause
        wait = bucket.wait_s(amount, now)
        if wait:
            assert bucket.wait_s(amount, now + wait * 0.99) > 0
        assert bucket.wait_s(amount, now + wait + 1e-6) == 0
        now += wait + 1e-6
        bucket.take(amount, now)


@given(BOUND, st.integers(0, 20_000), st.floats(0, 100))
def test_what_is_given_back_was_never_taken(per_minute: int, amount: int, now: float) -> None:
    bucket, other = Bucket(per_minute, 0.0), Bucket(per_minute, 0.0)
    bucket.take(amount, now)
    bucket.take(-amount, now)
    assert bucket.level(now) == pytest.approx(other.level(now))


def test_a_minutes_worth_passes_at_once_and_then_one_at_a_time() -> None:
    rates, limits = Rates(), Limits(calls_per_minute=6)
    for left in range(5, -1, -1):
        assert rates.take("k", limits, 1, 100.0) == (Rate(REQUESTS, 6, left, 10.0 * (6 - left)),)
    with pytest.raises(HttpError) as refused:
        rates.take("k", limits, 1, 100.0)
    assert (refused.value.status, refused.value.headers["retry-after"]) == (429, "10")
    assert refused.value.rates == (Rate(REQUESTS, 6, 0, 60.0),)
    assert rates.take("other", limits, 1, 100.0)
    assert rates.take("k", limits, 1, 110.0)[0].remaining == 0


def test_a_refused_request_takes_from_no_bucket() -> None:
    rates, limits = Rates(), Limits(calls_per_minute=10, prompt_tokens_per_minute=100)
    rates.take("k", limits, 100, 0.0)
    for _ in range(20):
        with pytest.raises(HttpError, match="100 prompt tokens a minute"):
            rates.take("k", limits, 50, 0.0)
    assert rates.take("k", limits, 50, 30.0)[0].remaining == 9


def test_new_bounds_of_a_key_are_in_force_at_once_and_no_bounds_count_nothing() -> None:
    rates = Rates()
    assert rates.take("k", UNLIMITED, 10**9, 0.0) == ()
    rates.take("k", Limits(calls_per_minute=1), 0, 0.0)
    assert rates.take("k", Limits(calls_per_minute=5), 0, 0.0)[0].remaining == 4


def test_each_dialect_has_its_own_headers_and_the_tightest_bound_of_a_name_is_shown() -> None:
    rates = [Rate(REQUESTS, 60, 2, 58.0), Rate(INPUT_TOKENS, 1000, 400, 36.0), Rate(TOKENS, 5000, 300, 0.5)]
    assert headers(rates, "/v1/chat/completions", 0) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "58.000s",
        "x-ratelimit-limit-tokens": "5000",
        "x-ratelimit-remaining-tokens": "300",
        "x-ratelimit-reset-tokens": "0.500s",
    }
    assert headers(rates, "/v1/messages", 1_800_000_000.2) == {
        "anthropic-ratelimit-requests-limit": "60",
        "anthropic-ratelimit-requests-remaining": "2",
        "anthropic-ratelimit-requests-reset": "2027-01-15T08:00:59Z",
        "anthropic-ratelimit-input-tokens-limit": "1000",
        "anthropic-ratelimit-input-tokens-remaining": "400",
        "anthropic-ratelimit-input-tokens-reset": "2027-01-15T08:00:37Z",
        "anthropic-ratelimit-tokens-limit": "5000",
        "anthropic-ratelimit-tokens-remaining": "300",
        "anthropic-ratelimit-tokens-reset": "2027-01-15T08:00:01Z",
    }
    assert headers([], "/v1/messages", 0) == {}
