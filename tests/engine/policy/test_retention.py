"""What is kept between calls holds up worse programs only, for a time only, and where programs come back only."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from agentserving_engine.policy import Retention, Wanted
from agentserving_engine.policy.retention import LEAST_RETURNS, MAX_CONTEXTS, MAX_PASSED_OVER, Place
from hypothesis import given, settings
from hypothesis import strategies as st

SECOND = 1_000_000


class Blocks:
    """Everything is cached and nobody holds it."""

    def __init__(self) -> None:
        self.refreshed: list[Sequence[object]] = []

    def common(self, one: Sequence[object], other: Sequence[object]) -> int:
        return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

    def idle(self, context: Sequence[object], first: int) -> int:
        return len(context) - first

    def refresh(self, context: Sequence[object], first: int) -> None:
        self.refreshed.append(context)


def context(name: str, blocks: int) -> list[tuple[str, int]]:
    return [(name, at) for at in range(blocks)]


def retention(*left: tuple[str, Place, int], seconds: float = 1.0) -> Retention:
    """Programs that left contexts of so many blocks at time 0."""
    made = Retention(Blocks())
    for program, place, blocks in left:
        made.left(program, "app", place, context(program, blocks), seconds * SECOND, 0)
    return made


def may_start(made: Retention, *calls: Wanted, now_us: int = 0, slots: int = 99, free: int = 100) -> list[str] | None:
    by_key = {str(number): call for number, call in enumerate(calls)}
    return made.may_start(list(by_key), now_us, slots=slots, free_blocks=free, wanted=by_key.__getitem__)


def test_a_worse_program_waits_until_it_fits_beside_what_is_kept() -> None:
    made = retention(("a", (1, 0), 60))
    assert may_start(made, Wanted("b", (2, 0), 41)) == []
    assert may_start(made, Wanted("b", (2, 0), 41), free=101) is None
    assert may_start(made, Wanted("b", (2, 0), 41)) == []
    made.back("c", 0)
    assert may_start(made, Wanted("c", (2, 0), 40)) is None


def test_a_better_program_and_the_program_itself_do_not_wait() -> None:
    made = retention(("a", (1, 5), 60))
    assert may_start(made, Wanted("b", (0, 9), 100)) is None
    assert may_start(made, Wanted("b", (1, 4), 100)) is None
    assert may_start(made, Wanted("a", (3, 5), 40, idle_blocks=60)) is None


def test_behind_one_that_does_not_fit_others_start() -> None:
    made = retention(("a", (1, 0), 60))
    assert may_start(made, Wanted("b", (2, 0), 50), Wanted("c", (2, 1), 30), Wanted("d", (2, 2), 20)) == ["1"]


def test_a_call_that_fits_nowhere_is_the_engines_to_refuse() -> None:
    made = retention(("a", (1, 0), 60))
    assert may_start(made, Wanted("b", (2, 0), 50), Wanted("c", (2, 1), 101), Wanted("d", (2, 2), 1)) == ["1"]


def test_what_is_kept_is_kept_for_its_time() -> None:
    made = retention(("a", (1, 0), 60), ("b", (1, 1), 10), seconds=2)
    assert made.next_end_us() == 2 * SECOND
    assert may_start(made, Wanted("c", (2, 0), 50), now_us=2 * SECOND - 1) == []
    assert may_start(made, Wanted("c", (2, 0), 50), now_us=2 * SECOND) is None
    assert made.empty


def test_a_context_that_goes_on_is_not_counted_twice() -> None:
    made = Retention(Blocks())
    for blocks in (40, 50, 60):
        made.left("a", "app", (1, 0), context("a", blocks), SECOND, 0)
    assert may_start(made, Wanted("b", (2, 0), 40)) is None
    assert may_start(made, Wanted("b", (2, 0), 41)) == []


def test_branches_of_a_program_count_what_they_share_once() -> None:
    made, stem = Retention(Blocks()), context("stem", 20)
    for branch in ("x", "y"):
        made.left("a", "app", (1, 0), [*stem, *context(branch, 20)], SECOND, 0)
    assert may_start(made, Wanted("b", (2, 0), 40)) is None
    assert may_start(made, Wanted("b", (2, 0), 41)) == []


def test_of_one_program_the_newest_contexts_are_kept() -> None:
    made = Retention(Blocks())
    for number in range(2 * MAX_CONTEXTS):
        made.left("a", "app", (1, 0), context(str(number), 5), SECOND, 0)
    assert may_start(made, Wanted("b", (2, 0), 100 - 5 * MAX_CONTEXTS)) is None
    assert may_start(made, Wanted("b", (2, 0), 101 - 5 * MAX_CONTEXTS)) == []


def test_nothing_is_kept_of_a_class_whose_programs_do_not_come_back_in_time() -> None:
    made, now = Retention(Blocks()), 0
    while True:
        made.left(f"p{now}", "app", (1, 0), context("p", 60), 1, now)
        now += 2
        may_start(made, Wanted("b", (2, 0), 50), now_us=now)
        if made.empty and now > 2 * SECOND:
            pytest.fail("kept for ever")
        made.left("probe", "app", (1, 0), context("p", 60), 1000, now)
        kept, now = not made.empty, now + 1001
        may_start(made, Wanted("b", (2, 0), 50), now_us=now)
        if not kept:
            break
    made.left("other", "another", (1, 0), context("p", 60), SECOND, now)
    assert not made.empty
    # Others of the class do come back: so it is kept again.
    for number in range(1000):
        made.left("again", "app", (1, 0), context("q", 60), SECOND, now + number)
        made.back("again", now + number)
    made.clear()
    made.left("again", "app", (1, 0), context("q", 60), SECOND, now + 1000)
    assert not made.empty
    assert 0 < LEAST_RETURNS < 1


def test_a_walk_looks_past_so_many_calls_only() -> None:
    made, asked = retention(("a", (1, 0), 60)), []

    def wanted(key: str) -> Wanted:
        asked.append(key)
        return Wanted(key, (2, 0), 50)

    able = made.may_start((str(n) for n in range(10_000)), 0, slots=9, free_blocks=100, wanted=wanted)
    assert able == []
    assert len(asked) == MAX_PASSED_OVER
    assert made.may_start((str(n) for n in range(10_000)), 1, slots=9, free_blocks=100, wanted=wanted) == []
    assert len(asked) == MAX_PASSED_OVER, "asked again though nothing has changed"


def test_what_is_kept_is_refreshed_before_evictions_reach_it_the_best_last() -> None:
    memory = Blocks()
    made = Retention(memory)
    for program, place in (("a", (1, 0)), ("b", (0, 0))):
        made.left(program, "app", place, context(program, 20), SECOND, 0)
    assert not made.refresh(29, 100)
    assert made.refresh(30, 100)
    assert memory.refreshed == [context("a", 20), context("b", 20)]
    assert not made.refresh(59, 100)


places = st.tuples(st.integers(0, 2), st.integers(0, 3))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), places, st.integers(1, 60)), max_size=6),
    st.lists(st.builds(Wanted, st.sampled_from("cdefghij"), places, st.integers(1, 120)), max_size=12),
    st.integers(1, 12),
    st.integers(0, 150),
)
def test_who_starts_fits_beside_what_is_kept_of_better_programs_and_who_waits_does_not(
    left: list[tuple[str, Place, int]], calls: list[Wanted], slots: int, free: int
) -> None:
    # The newest context of a program that has left several counts for all of them here: they are the same beginning.
    kept = {program: (place, blocks) for program, place, blocks in left}
    made = retention(*((program, *kept[program]) for program in kept))
    calls = sorted(calls, key=lambda call: call.place)
    able = may_start(made, *calls, slots=slots, free=free)
    starts = [str(n) for n in range(len(calls))] if able is None else able
    for number, call in enumerate(calls):
        if slots <= 0 or free < 0:
            break
        against = sum(size for name, (place, size) in kept.items() if place < call.place and name != call.program)
        if str(number) in starts:
            assert call.new_blocks <= free - against or call.new_blocks > free
            slots, free = slots - 1, free - call.new_blocks
        else:
            assert free - against < call.new_blocks <= free
