"""Retained KV delays only worse programs, only for a time, and only in classes whose programs return."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from agentserving_engine.policy import EndedContext, Retention, Wanted, origin_of
from agentserving_engine.policy.retention import LEAST_RETURNS, MAX_CONTEXTS, MAX_PASSED_OVER, MIN_SWEEP, Place
from engine.policy.builders import program
from hypothesis import given, settings
from hypothesis import strategies as st

SECOND = 1_000_000


class Blocks:
    """Everything is cached, and no request references it."""

    def __init__(self) -> None:
        self.refreshed: list[Sequence[object]] = []

    def common(self, one: Sequence[object], other: Sequence[object]) -> int:
        return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

    def idle(self, context: Sequence[object], first: int) -> int:
        return len(context) - first

    def blocks_of(self, unit: object) -> int:
        return 1

    def refresh(self, context: Sequence[object], first: int) -> None:
        self.refreshed.append(context)


def context(name: str, blocks: int) -> list[tuple[str, int]]:
    return [(name, at) for at in range(blocks)]


def leave(
    made: Retention, name: str, class_name: str, place: Place, context: Sequence[object], worth_us: float, now_us: int,
    thread: str = "",
) -> None:  # fmt: skip
    ended = EndedContext(
        program=program(name), origin=origin_of(name, thread), class_name=class_name, place=place, context=context,
        worth_us=worth_us,
    )  # fmt: skip
    made.call_ended(ended, now_us)


def retention(*left: tuple[str, Place, int], seconds: float = 1.0) -> Retention:
    """Programs whose calls left contexts of so many blocks at time 0."""
    made = Retention(Blocks())
    for name, place, blocks in left:
        leave(made, name, "app", place, context(name, blocks), seconds * SECOND, 0)
    return made


def startable(made: Retention, *calls: Wanted, now_us: int = 0, slots: int = 99, free: int = 100) -> list[str] | None:
    by_key = {str(number): call for number, call in enumerate(calls)}
    return made.startable(list(by_key), now_us, slots=slots, free_blocks=free, wanted=by_key.__getitem__, order=0)


def test_a_worse_program_waits_until_it_fits_without_the_retained_blocks() -> None:
    made = retention(("a", (1, 0), 60))
    assert startable(made, Wanted(program("b"), (2, 0), 41)) == []
    assert startable(made, Wanted(program("b"), (2, 0), 41), free=101) is None
    assert startable(made, Wanted(program("b"), (2, 0), 41)) == []
    made.call_arrived(program("c"), 0)
    assert startable(made, Wanted(program("c"), (2, 0), 40)) is None


def test_a_better_program_and_the_program_itself_do_not_wait() -> None:
    made = retention(("a", (1, 5), 60))
    assert startable(made, Wanted(program("b"), (0, 9), 100)) is None
    assert startable(made, Wanted(program("b"), (1, 4), 100)) is None
    assert startable(made, Wanted(program("a"), (3, 5), 40, idle_blocks=60)) is None


def test_calls_behind_one_that_does_not_fit_start() -> None:
    made = retention(("a", (1, 0), 60))
    assert startable(
        made, Wanted(program("b"), (2, 0), 50), Wanted(program("c"), (2, 1), 30), Wanted(program("d"), (2, 2), 20)
    ) == ["1"]


def test_a_call_that_fits_nowhere_is_left_to_the_engine() -> None:
    made = retention(("a", (1, 0), 60))
    assert startable(
        made, Wanted(program("b"), (2, 0), 50), Wanted(program("c"), (2, 1), 101), Wanted(program("d"), (2, 2), 1)
    ) == ["1"]


def test_a_context_is_retained_for_its_time() -> None:
    made = retention(("a", (1, 0), 60), ("b", (1, 1), 10), seconds=2)
    assert made.next_end_us() == 2 * SECOND
    assert startable(made, Wanted(program("c"), (2, 0), 50), now_us=2 * SECOND - 1) == []
    assert startable(made, Wanted(program("c"), (2, 0), 50), now_us=2 * SECOND) is None
    assert made.empty


def test_a_context_that_continues_is_not_counted_twice() -> None:
    made = Retention(Blocks())
    for blocks in (40, 50, 60):
        leave(made, "a", "app", (1, 0), context("a", blocks), SECOND, 0)
    assert startable(made, Wanted(program("b"), (2, 0), 40)) is None
    assert startable(made, Wanted(program("b"), (2, 0), 41)) == []


def test_branches_of_a_program_count_what_they_share_once() -> None:
    made, stem = Retention(Blocks()), context("stem", 20)
    for branch in ("x", "y"):
        leave(made, "a", "app", (1, 0), [*stem, *context(branch, 20)], SECOND, 0)
    assert startable(made, Wanted(program("b"), (2, 0), 40)) is None
    assert startable(made, Wanted(program("b"), (2, 0), 41)) == []


def test_the_newest_contexts_of_a_program_are_retained() -> None:
    made = Retention(Blocks())
    for number in range(2 * MAX_CONTEXTS):
        leave(made, "a", "app", (1, 0), context(str(number), 5), SECOND, 0)
    assert startable(made, Wanted(program("b"), (2, 0), 100 - 5 * MAX_CONTEXTS)) is None
    assert startable(made, Wanted(program("b"), (2, 0), 101 - 5 * MAX_CONTEXTS)) == []


def test_a_class_whose_programs_do_not_return_in_time_is_not_retained() -> None:
    made, now = Retention(Blocks()), 0
    while True:
        leave(made, f"p{now}", "app", (1, 0), context("p", 60), 1, now)
        now += 2
        startable(made, Wanted(program("b"), (2, 0), 50), now_us=now)
        if made.empty and now > 2 * SECOND:
            pytest.fail("retained for ever")
        leave(made, "probe", "app", (1, 0), context("p", 60), 1000, now)
        kept, now = not made.empty, now + 1001
        startable(made, Wanted(program("b"), (2, 0), 50), now_us=now)
        if not kept:
            break
    leave(made, "other", "another", (1, 0), context("p", 60), SECOND, now)
    assert not made.empty
    # Other programs of the class return in time, so it is retained again.
    for number in range(1000):
        leave(made, "again", "app", (1, 0), context("q", 60), SECOND, now + number)
        made.call_arrived(program("again"), now + number)
    made.clear()
    leave(made, "again", "app", (1, 0), context("q", 60), SECOND, now + 1000)
    assert not made.empty
    assert 0 < LEAST_RETURNS < 1


def test_a_search_passes_over_a_bounded_number_of_calls() -> None:
    made, asked = retention(("a", (1, 0), 60)), []

    def wanted(key: str) -> Wanted:
        asked.append(key)
        return Wanted(program(key), (2, 0), 50)

    able = made.startable((str(n) for n in range(10_000)), 0, slots=9, free_blocks=100, wanted=wanted, order=0)
    assert able == []
    assert len(asked) == MAX_PASSED_OVER
    assert made.startable((str(n) for n in range(10_000)), 1, slots=9, free_blocks=100, wanted=wanted, order=0) == []
    assert len(asked) == MAX_PASSED_OVER, "asked again though nothing has changed"


def test_retained_blocks_are_refreshed_before_evictions_reach_them_the_best_last() -> None:
    memory = Blocks()
    made = Retention(memory)
    for name, place in (("a", (1, 0)), ("b", (0, 0))):
        leave(made, name, "app", place, context(name, 20), SECOND, 0)
    assert not made.refresh(29, 100)
    assert made.refresh(30, 100)
    assert memory.refreshed == [context("a", 20), context("b", 20)]
    assert not made.refresh(59, 100)


places = st.tuples(st.integers(0, 2), st.integers(0, 3))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), places, st.integers(1, 60)), max_size=6),
    st.lists(st.builds(Wanted, st.sampled_from("cdefghij").map(program), places, st.integers(1, 120)), max_size=12),
    st.integers(1, 12),
    st.integers(0, 150),
)
def test_a_call_starts_if_and_only_if_it_fits_without_the_blocks_of_better_programs(
    left: list[tuple[str, Place, int]], calls: list[Wanted], slots: int, free: int
) -> None:
    # The newest context of a program that has left several counts for all of them here: they are the same beginning.
    kept = {name: (place, blocks) for name, place, blocks in left}
    made = retention(*((name, *kept[name]) for name in kept))
    calls = sorted(calls, key=lambda call: call.place)
    able = startable(made, *calls, slots=slots, free=free)
    starts = [str(n) for n in range(len(calls))] if able is None else able
    for number, call in enumerate(calls):
        if slots <= 0 or free < 0:
            break
        against = sum(
            size for name, (place, size) in kept.items() if place < call.place and program(name) != call.program
        )
        if str(number) in starts:
            assert call.new_blocks <= free - against or call.new_blocks > free
            slots, free = slots - 1, free - call.new_blocks
        else:
            assert free - against < call.new_blocks <= free


def test_a_verdict_ends_with_the_order_it_was_made_for() -> None:
    """A promoted call, or one whose program resumes, is looked at in the next step although nothing was freed."""
    made = retention(("a", (1, 0), 60))
    stays = made.startable(
        ["b"], 0, slots=9, free_blocks=100, wanted=lambda _: Wanted(program("b"), (2, 0), 50), order=1
    )
    assert stays == []
    promoted = Wanted(program("b"), (0, 0), 50)
    assert made.startable(["b"], 1, slots=9, free_blocks=100, wanted=lambda _: promoted, order=2) is None


def test_a_step_in_which_calls_are_hidden_makes_no_verdict() -> None:
    made = retention(("a", (1, 0), 60))
    deferred = Wanted(program("b"), (2, 0), 50)
    assert made.startable(["b"], 0, slots=9, free_blocks=100, wanted=lambda _: deferred, order=None) == []
    better = Wanted(program("b"), (0, 0), 50)
    assert made.startable(["b"], 1, slots=9, free_blocks=100, wanted=lambda _: better, order=None) is None


@pytest.mark.parametrize(("expected_s", "dropped"), [(0, False), (0.5, False), (1.5, True)])
def test_a_tool_wait_longer_than_the_retention_frees_the_context_when_it_begins(
    expected_s: float, dropped: bool
) -> None:
    made = retention(("a", (1, 0), 60), seconds=1)
    made.tool_wait_began(program("a"), origin_of("a"), int(expected_s * SECOND), 1)
    assert made.empty == dropped
    assert startable(made, Wanted(program("b"), (2, 0), 50)) == (None if dropped else [])


def test_a_tool_wait_known_before_the_call_ends_counts_as_well_until_it_is_over() -> None:
    made = Retention(Blocks())
    made.tool_wait_began(program("a"), origin_of("a"), 5 * SECOND, 0)
    leave(made, "a", "app", (1, 0), context("a", 60), SECOND, 0)
    assert made.empty
    made.tool_wait_ended(program("a"), origin_of("a"))
    leave(made, "a", "app", (1, 0), context("a", 60), SECOND, 0)
    assert not made.empty


def test_a_long_tool_wait_of_one_thread_leaves_the_contexts_of_the_others() -> None:
    made = Retention(Blocks())
    for thread in ("x", "y"):
        leave(made, "a", "app", (1, 0), context(thread, 30), SECOND, 0, thread)
    made.tool_wait_began(program("a"), origin_of("a", "x"), 9 * SECOND, 1)
    assert startable(made, Wanted(program("b"), (2, 0), 70)) is None
    assert startable(made, Wanted(program("b"), (2, 0), 71)) == []
    # Without a thread it is the whole program that waits.
    made.tool_wait_began(program("a"), origin_of("a"), 9 * SECOND, 2)
    assert made.empty


def test_a_tool_wait_of_one_tenant_frees_nothing_of_another() -> None:
    made = retention(("a", (1, 0), 60))
    made.tool_wait_began(program("a", tenant="other"), origin_of("a"), 9 * SECOND, 1)
    assert not made.empty


def test_announced_long_waits_do_not_count_against_the_class() -> None:
    made = Retention(Blocks())
    for number in range(100):
        now = 10 * SECOND * number
        leave(made, "a", "app", (1, 0), context("a", 60), SECOND, now)
        made.tool_wait_began(program("a"), origin_of("a"), 5 * SECOND, now)
        made.call_arrived(program("a"), now + 5 * SECOND)
        made.tool_wait_ended(program("a"), origin_of("a"))
    leave(made, "a", "app", (1, 0), context("a", 60), SECOND, 10**10)
    assert not made.empty


def test_contexts_whose_time_is_over_are_forgotten_although_no_call_ever_waits() -> None:
    made = Retention(Blocks())
    for number in range(20 * MIN_SWEEP):
        leave(made, f"p{number}", "app", (1, 0), context("p", 3), 10, 100 * number)
    assert len(made._retained) <= MIN_SWEEP
    assert len(made._away) <= MIN_SWEEP
