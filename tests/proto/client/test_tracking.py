"""The graph of calls, as it is read off points: random programs of forks and joins, and the limits."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from agentserving.programs.tracking import (
    MAX_INFERRED_THREADS,
    MAX_NAMED_THREADS,
    MAX_PARENTS,
    MAX_UNJOINED,
    Point,
    Thread,
    Tracker,
)
from hypothesis import given, settings
from hypothesis import strategies as st

# A step is a call (None) or parallel branches; a branch shows itself by a call of its own before it forks.
Branch = list[object]
branches = st.recursive(
    st.lists(st.none(), min_size=1, max_size=3),
    lambda inner: st.lists(st.one_of(st.none(), st.lists(inner, min_size=2, max_size=4)), min_size=1, max_size=3).map(
        lambda steps: [None, *steps]
    ),
    max_leaves=12,
)


@dataclass
class Run:
    """A program that is run step by step, in an order that dice choose."""

    dice: random.Random
    # Whether a flow's calls are made in its own context, or in copies that are thrown away.
    copies: bool
    # Whether all branches of a fork make their first call before any of them ends.
    together: bool
    tracker: Tracker = field(default_factory=lambda: Tracker("p", "main"))
    number: int = 0
    answered: set[str] = field(default_factory=set)
    wanted: dict[str, tuple[str, ...]] = field(default_factory=dict)
    found: dict[str, tuple[str, ...]] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)

    def branch(self, steps: Branch, thread: Thread, carried: Point, before: tuple[str, ...]) -> Iterator[str]:
        """Yields at every wait; returns by way of `ends` the calls that whatever follows comes after."""
        for step in steps:
            if step is None:
                before = yield from self.call(thread, before)
                if not self.copies:
                    carried = thread.point
            else:
                before = yield from self.parallel(step, carried, before)  # type: ignore[arg-type]
        return before  # type: ignore[return-value]

    def call(self, thread: Thread, before: tuple[str, ...]) -> Iterator[str]:
        pending = self.tracker.begin(thread)
        assert all(parent in self.answered for parent in pending.parents), "a parent has ended before"
        assert thread.thread_id not in self.busy, "two parallel calls in one thread"
        self.busy.add(thread.thread_id)
        yield "begun"
        call_id = f"p.1.{self.number}"
        self.number += 1
        self.found[call_id], self.wanted[call_id] = pending.parents, before
        self.answered.add(call_id)
        self.busy.discard(thread.thread_id)
        self.tracker.answered(pending, call_id, in_home=not self.copies)
        self.tracker.end(pending)
        yield "answered"
        return (call_id,)  # type: ignore[return-value]

    def parallel(self, parts: list[Branch], at: Point, before: tuple[str, ...]) -> Iterator[str]:
        waiting = list(enumerate(parts))
        running: dict[int, Iterator[str]] = {}
        ends: dict[int, tuple[str, ...]] = {}
        while waiting or running:
            if waiting and (self.together or not running or self.dice.random() < 0.5):
                index, steps = waiting.pop(0)
                thread = self.tracker.fork(at, f"flow {self.number} {index}")
                thread.alive = lambda index=index: index not in ends  # type: ignore[misc]
                running[index] = self.branch(steps, thread, thread.point, before)
            else:
                index = self.dice.choice(sorted(running))
            try:
                yield next(running[index])
            except StopIteration as stop:
                ends[index] = stop.value
                del running[index]
        return tuple(call for index in sorted(ends) for call in ends[index])  # type: ignore[return-value]


def run(steps: Branch, seed: int, *, copies: bool, together: bool) -> Run:
    made = Run(random.Random(seed), copies, together)
    main = made.tracker.main
    for _ in made.branch([None, *steps, None], main, main.point, ()):
        pass
    return made


@settings(deadline=None)  # the machine is shared
@given(branches, st.integers(0, 1 << 30), st.booleans())
def test_branches_that_overlap_are_found_exactly(steps: Branch, seed: int, copies: bool) -> None:
    made = run(steps, seed, copies=copies, together=True)
    assert {call: set(found) for call, found in made.found.items()} == {
        call: set(wanted) for call, wanted in made.wanted.items()
    }


@settings(deadline=None)  # the machine is shared
@given(branches, st.integers(0, 1 << 30), st.booleans())
def test_whatever_the_order_every_true_dependency_is_an_ancestor(steps: Branch, seed: int, copies: bool) -> None:
    made = run(steps, seed, copies=copies, together=False)
    for call, wanted in made.wanted.items():
        ancestors: set[str] = set()
        frontier = list(made.found[call])
        while frontier:
            parent = frontier.pop()
            if parent not in ancestors:
                ancestors.add(parent)
                frontier += made.found[parent]
        assert set(wanted) <= ancestors
        assert call not in ancestors


def answer(tracker: Tracker, thread: Thread, call_id: str) -> tuple[str, ...]:
    pending = tracker.begin(thread)
    tracker.answered(pending, call_id, in_home=True)
    tracker.end(pending)
    return pending.parents


def test_a_reduce_over_more_calls_than_the_control_plane_takes_names_the_newest() -> None:
    tracker = Tracker("p", "main")
    at = tracker.main.point
    threads = [tracker.fork(at, index) for index in range(100)]
    pending = [tracker.begin(thread) for thread in threads]
    for index, call in enumerate(pending):
        tracker.answered(call, f"p.1.{index}", in_home=True)
        tracker.end(call)
    parents = answer(tracker, tracker.main, "p.1.100")
    assert parents == tuple(f"p.1.{index}" for index in range(100 - MAX_PARENTS, 100))


def test_a_program_has_as_many_threads_as_it_is_wide() -> None:
    tracker = Tracker("p", "main")
    used = set()
    for number in range(50):
        at = tracker.main.point
        threads = [tracker.fork(at, index) for index in range(3)]
        pending = [tracker.begin(thread) for thread in threads]
        for index, call in enumerate(pending):
            used.add(call.thread.thread_id)
            tracker.answered(call, f"p.1.{number * 4 + index}", in_home=True)
            tracker.end(call)
        answer(tracker, tracker.main, f"p.1.{number * 4 + 3}")
    assert used == {"t1", "t2", "t3"}


def test_a_chain_of_short_forks_is_one_thread() -> None:
    tracker = Tracker("p", "main")
    at = tracker.main.point
    threads = [tracker.fork(at, 0)]
    assert answer(tracker, threads[0], "p.1.0") == ()
    for number in range(1, 5):
        thread = tracker.fork(at, number)
        assert thread.thread_id == "t1"
        assert answer(tracker, thread, f"p.1.{number}") == (f"p.1.{number - 1}",)


def test_no_number_of_threads_goes_beyond_what_the_control_plane_takes() -> None:
    tracker = Tracker("p", "main")
    at = tracker.main.point
    ids = {tracker.fork(at, 0).thread_id for _ in range(3 * MAX_INFERRED_THREADS)}
    ids |= {tracker.fork(at, 0, f"named-{index}").thread_id for index in range(2 * MAX_NAMED_THREADS)}
    assert len(ids) == MAX_INFERRED_THREADS + MAX_NAMED_THREADS


def test_a_call_that_failed_is_no_parent() -> None:
    tracker = Tracker("p", "main")
    answer(tracker, tracker.main, "p.1.0")
    tracker.end(tracker.begin(tracker.main))
    assert answer(tracker, tracker.main, "p.1.2") == ("p.1.0",)


def test_calls_that_overlap_in_one_thread_are_both_parents_of_the_next() -> None:
    tracker = Tracker("p", "main")
    first, second = tracker.begin(tracker.main), tracker.begin(tracker.main)
    tracker.answered(first, "p.1.0", in_home=True)
    tracker.answered(second, "p.1.1", in_home=True)
    assert tracker.begin(tracker.main).parents == ("p.1.0", "p.1.1")


def test_a_program_that_never_joins_remembers_no_more_than_it_can_name() -> None:
    tracker = Tracker("p", "main")
    at = tracker.main.point
    background = tracker.fork(at, "background")
    background.alive = lambda: True
    tracker.begin(background)
    for number in range(3 * MAX_UNJOINED):
        answer(tracker, tracker.fork(at, number), f"p.1.{number}")
    assert len(tracker.main.children) <= MAX_UNJOINED
    assert len(at.wave) <= MAX_UNJOINED
    assert answer(tracker, tracker.main, "p.1.x")[-1] == f"p.1.{3 * MAX_UNJOINED - 1}"


def test_a_thread_that_is_done_is_over_though_a_stream_of_it_was_left_open() -> None:
    tracker = Tracker("p", "main")
    thread = tracker.fork(tracker.main.point, "task")
    done: list[bool] = []
    thread.alive = lambda: not done
    tracker.answered(tracker.begin(thread), "p.1.0", in_home=True)
    assert tracker.begin(tracker.main).parents == ()
    done.append(True)
    assert tracker.begin(tracker.main).parents == ("p.1.0",)
