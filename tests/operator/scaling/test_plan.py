"""Engines leave at the ends of the StatefulSet's ordinals, the one with less context first, and never with calls."""

from __future__ import annotations

from agentserving_operator.scaling.plan import Plan, Range, Work, plan
from hypothesis import given
from hypothesis import strategies as st


def test_the_end_with_less_context_leaves() -> None:
    work = {0: Work(kept_tokens=10), 1: Work(kept_tokens=5), 2: Work(kept_tokens=50)}
    assert plan(Range(0, 3), 2, work, leaving=(), drained=()).leaving == {0}
    assert plan(Range(0, 3), 2, {**work, 2: Work(kept_tokens=9)}, leaving=(), drained=()).leaving == {2}
    assert plan(Range(0, 3), 1, work, leaving=(), drained=()).leaving == {0, 1}


def test_an_engine_goes_when_it_is_drained_and_has_no_calls() -> None:
    busy, idle = {1: Work(calls=2)}, {1: Work()}
    assert plan(Range(0, 2), 1, busy, leaving=[1], drained=[1]).range == Range(0, 2)
    assert plan(Range(0, 2), 1, idle, leaving=[1], drained=[]).range == Range(0, 2)
    assert plan(Range(0, 2), 1, idle, leaving=[1], drained=[1]) == Plan(range=Range(0, 1))


def test_the_lower_end_goes_by_a_larger_start_and_comes_back_first() -> None:
    gone = plan(Range(0, 3), 2, {1: Work(kept_tokens=1), 2: Work(kept_tokens=1)}, leaving=[0], drained=[0])
    assert gone.range == Range(1, 2)
    assert plan(gone.range, 4, {}, leaving=(), drained=()).range == Range(0, 4)


def test_a_choice_holds_while_contexts_change() -> None:
    work = {0: Work(kept_tokens=1), 2: Work(kept_tokens=2, calls=1)}
    assert plan(Range(0, 3), 2, work, leaving=[2], drained=[2]).leaving == {2}


def test_when_more_are_needed_again_nobody_leaves() -> None:
    assert plan(Range(0, 3), 3, {}, leaving=[2], drained=[2]) == Plan(range=Range(0, 3))


def test_groups_of_pods_leave_at_the_upper_end_only() -> None:
    work = {0: Work(kept_tokens=1), 2: Work(kept_tokens=50)}
    assert plan(Range(0, 3), 2, work, leaving=(), drained=(), from_zero=True).leaving == {2}
    # The lower one is drained first, and still waits for the upper one.
    assert plan(Range(0, 2), 0, {}, leaving=[0, 1], drained=[0], from_zero=True).range == Range(0, 2)
    assert plan(Range(0, 2), 0, {}, leaving=[0, 1], drained=[0, 1], from_zero=True).range == Range(0, 0)


works = st.dictionaries(st.integers(0, 12), st.builds(Work, kept_tokens=st.integers(0, 9), calls=st.integers(0, 2)))
ordinals = st.frozensets(st.integers(0, 12))


@given(st.integers(0, 5), st.integers(0, 8), st.integers(0, 10), works, ordinals, ordinals)
def test_no_engine_goes_with_calls_or_undrained(
    start: int, count: int, desired: int, work: dict[int, Work], leaving: frozenset[int], drained: frozenset[int]
) -> None:
    live = Range(start, count)
    planned = plan(live, desired, work, leaving=leaving, drained=drained)
    gone = set(live.ordinals) - set(planned.range.ordinals)
    assert all(each in drained and not work.get(each, Work()).calls for each in gone)
    assert planned.leaving <= set(planned.range.ordinals)
    assert planned.range.count >= desired
    # Those that stay whatever comes are as many as desired, or all.
    assert len(planned.range.ordinals) - len(planned.leaving) == max(desired, 0)
    # Names do not grow beyond the largest number of engines.
    if planned.range.count:
        assert planned.range.ordinals[-1] < max(desired, live.start + live.count, 1)


@given(st.integers(1, 8), st.integers(0, 8), works)
def test_drains_that_succeed_lead_to_the_desired_number(count: int, desired: int, work: dict[int, Work]) -> None:
    live, idle = Range(0, count), {each: Work(kept_tokens=of.kept_tokens) for each, of in work.items()}
    first = plan(live, desired, work, leaving=(), drained=())
    last = plan(first.range, desired, idle, leaving=first.leaving, drained=first.leaving)
    assert last.range.count == desired
    assert plan(last.range, desired, idle, leaving=last.leaving, drained=()).leaving == frozenset()
