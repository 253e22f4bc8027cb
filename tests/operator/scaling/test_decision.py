"""The number of engines follows what programs need, and does not swing."""

from __future__ import annotations

import math
from dataclasses import replace

from agentserving_operator.scaling.decision import (
    WAITING_S,
    Bounds,
    Need,
    ScaleReason,
    State,
    decide,
    recommendation,
)
from hypothesis import given
from hypothesis import strategies as st

BOUNDS = Bounds(least=1, most=8, target=0.8, scale_in_s=300, idle_s=600)
NOTHING = Need()


def need(calls: int = 1, **engines: float) -> Need:
    """`engines`: context=2.0 and so on."""
    return Need(engines={ScaleReason[name.upper()]: amount for name, amount in engines.items()}, calls=calls)


def decided(state: State, wanted: Need | None, at: float, bounds: Bounds = BOUNDS) -> tuple[State, int]:
    state, decision = decide(state, wanted, bounds, at)
    return state, decision.desired


def test_two_recommendations_in_a_row_add_engines() -> None:
    state, desired = decided(State.begin(1, 0), need(context=3.0), 1)
    assert desired == 1
    assert decided(state, need(context=3.0), 2)[1] == 4


def test_the_smaller_of_two_recommendations_counts() -> None:
    state, _ = decided(State.begin(1, 0), need(context=6.0), 1)
    assert decided(state, need(context=1.0), 2)[1] == 2


def test_a_burst_of_one_moment_adds_none() -> None:
    state = State.begin(1, 0)
    for at in range(100):
        state, desired = decided(state, need(context=6.0 if at % 2 else 0.5), at)
        assert desired == 1


def test_that_calls_wait_counts_when_it_lasts() -> None:
    state = State.begin(1, 0)
    for at in range(1, 11):
        state, desired = decided(state, need(waiting=3.0), at)
        assert desired == 1, at
    state, _ = decided(state, need(waiting=2.0), 11)
    # The least within the time, and twice.
    assert decided(state, need(waiting=3.0), 12)[1] == 2


def test_calls_that_wait_for_each_other_now_and_then_start_no_engine() -> None:
    state = State.begin(1, 0)
    for at in range(200):
        state, desired = decided(state, need(waiting=0.0 if at % 8 == 0 else 9.0), at)
        assert desired == 1


def test_the_first_engine_is_started_at_once() -> None:
    bounds = Bounds(least=0, most=8, target=0.8, scale_in_s=300, idle_s=600)
    state, desired = decided(State.begin(0, 0), need(calls=5, context=3.0), 1, bounds)
    assert desired == 1
    assert decided(state, need(calls=5, context=3.0), 2, bounds)[1] == 4


def test_an_engine_leaves_when_fewer_were_needed_for_the_whole_time() -> None:
    state, at = State.begin(4, 0), 0
    for at in range(300):
        state, desired = decided(state, need(context=1.0), at)
        assert desired == 4, at
    assert decided(state, need(context=1.0), at + 1)[1] == 2


def test_a_need_within_the_time_keeps_engines() -> None:
    state = State.begin(4, 0)
    for at in range(2000):
        state, desired = decided(state, need(context=3.0 if at % 250 == 0 else 0.5), at)
        assert desired == 4


def test_the_last_engine_stays_until_nothing_was_needed_for_the_idle_time() -> None:
    bounds = Bounds(least=0, most=8, target=0.8, scale_in_s=60, idle_s=600)
    state, desired = decided(State.begin(1, 0), need(calls=1), 0, bounds)
    for at in range(1, 600):
        state, desired = decided(state, NOTHING, at, bounds)
        assert desired == 1
    state, decision = decide(state, NOTHING, bounds, 600)
    assert (decision.desired, decision.reason) == (0, ScaleReason.IDLE)


def test_without_an_answer_nothing_changes() -> None:
    state, decision = decide(State.begin(4, 0), None, BOUNDS, 10_000)
    assert (decision.desired, decision.reason) == (4, ScaleReason.NO_SIGNAL)
    # And what was recommended before does not confirm what is recommended after it.
    state, _ = decided(state, need(context=6.0), 10_001)
    state, _ = decided(state, None, 10_002)
    assert decided(state, need(context=6.0), 10_003)[1] == 4


def test_a_fuller_engine_than_the_target_needs_another() -> None:
    assert recommendation(need(context=0.8), BOUNDS) == (1, ScaleReason.CONTEXT)
    assert recommendation(need(context=0.81), BOUNDS) == (2, ScaleReason.CONTEXT)
    assert recommendation(need(context=0.81, calls=3), BOUNDS)[0] == 2
    # Waiting calls say that engines are full: no share of them is spared.
    assert recommendation(need(waiting=2.0), BOUNDS) == (2, ScaleReason.WAITING)


def test_the_reason_says_what_bounds() -> None:
    state, _ = decided(State.begin(8, 0), need(context=90.0), 1)
    assert decide(state, need(context=90.0), BOUNDS, 2)[1].reason is ScaleReason.AT_MAXIMUM
    assert decide(State.begin(1, 0), NOTHING, BOUNDS, 400)[1].reason is ScaleReason.AT_MINIMUM
    assert decide(State.begin(3, 0), NOTHING, BOUNDS, 1)[1].reason is ScaleReason.SCALE_IN_DELAYED


amounts = st.floats(0, 50, allow_nan=False)
needs = st.one_of(
    st.none(),
    st.builds(
        lambda context, calls, waiting: Need(
            engines={ScaleReason.CONTEXT: context, ScaleReason.CALLS: calls, ScaleReason.WAITING: waiting},
            calls=math.ceil(calls),
        ),
        amounts, amounts, amounts,
    ),
)  # fmt: skip
bounds_ = st.builds(
    lambda least, more, target, scale_in_s, idle_s: Bounds(
        least=least, most=max(1, least + more), target=target, scale_in_s=scale_in_s, idle_s=idle_s
    ),
    st.integers(0, 20), st.integers(0, 20), st.floats(0.1, 1), st.floats(0, 100), st.floats(1, 100),
)  # fmt: skip
stories = st.lists(st.tuples(st.floats(0.1, 30), needs), max_size=60)


@given(bounds_, st.integers(0, 40), stories)
def test_any_story_keeps_the_bounds_and_never_removes_what_was_needed_lately(
    bounds: Bounds, begin: int, story: list[tuple[float, Need | None]]
) -> None:
    state, now, wanted = State.begin(begin, 0.0), 0.0, list[tuple[float, int]]()
    desired = begin
    for step, each in story:
        now += step
        before = desired
        state, decision = decide(state, each, bounds, now)
        desired = decision.desired
        assert bounds.least <= desired <= bounds.most
        if each is None:
            assert desired == min(max(before, bounds.least), bounds.most)
            continue
        # Waits count when they last: they may count less than now, never more.
        lasting = dict(state.waits)
        covered = min(lasting) <= now - WAITING_S
        engines = {**each.engines, ScaleReason.WAITING: min(lasting.values()) if covered else 0.0}
        now_wanted = recommendation(replace(each, engines=engines), bounds)[0]
        wanted.append((now, now_wanted))
        recent = [count for at, count in wanted if at > now - bounds.scale_in_s]
        if desired < before and bounds.least <= before <= bounds.most:
            # Nothing within the time wanted more than there is now.
            assert max([*recent, 0]) <= desired
        if desired > before and bounds.least <= before <= bounds.most:
            assert desired <= max(now_wanted, 1)
        # Bounded memory, with falling numbers.
        counts = [count for _, count in state.past]
        assert counts == sorted(set(counts), reverse=True)


@given(bounds_, st.integers(0, 40), needs.filter(lambda each: each is not None))
def test_a_steady_need_is_met_and_then_nothing_changes(bounds: Bounds, begin: int, steady: Need) -> None:
    state, desired = State.begin(begin, 0.0), begin
    seen = []
    for second in range(0, 400):
        state, decision = decide(state, steady, bounds, second / 2)
        seen.append(decision.desired)
    wanted = min(max(recommendation(steady, bounds)[0], bounds.least), bounds.most)
    assert seen[-1] == wanted
    assert len(set(seen[2:])) <= 3
    assert desired == begin
