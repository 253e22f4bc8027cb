"""The heap against a plain dictionary, and its size."""

from __future__ import annotations

import random

import pytest
from agentserving.contract.policy import PRESETS
from agentserving_engine.policy import CallQueue, Room
from agentserving_engine.policy.lazy_heap import SLACK, LazyHeap
from engine.policy.builders import call
from hypothesis import given
from hypothesis import strategies as st

operations = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from("abcdefgh"), st.integers(0, 5)),
        st.tuples(st.just("discard"), st.sampled_from("abcdefgh"), st.just(0)),
        st.tuples(st.just("pop"), st.just(""), st.just(0)),
        st.tuples(st.just("look"), st.just(""), st.integers(0, 9)),
    ),
    max_size=200,
)


@given(operations)
def test_it_is_a_sorted_dictionary(steps: list[tuple[str, str, int]]) -> None:
    heap: LazyHeap[int] = LazyHeap()
    known: dict[str, tuple[int, int]] = {}
    for number, (what, key, value) in enumerate(steps):
        order = sorted(known, key=lambda each: known[each])
        match what:
            case "push":
                heap.push(key, value)
                known[key] = (value, number)
            case "discard":
                heap.discard(key)
                known.pop(key, None)
            case "pop":
                found = heap.pop()
                assert found == ((known[order[0]][0], order[0]) if order else None)
                if order:
                    del known[order[0]]
            case "look":
                assert heap.first_keys(value) == order[:value]
        assert list(heap) == sorted(known, key=lambda each: known[each])
        assert len(heap) == len(known)
        assert heap.entries <= 2 * len(known) + SLACK


def test_a_reader_learns_of_every_change() -> None:
    heap: LazyHeap[int] = LazyHeap()
    seen = heap.changes
    for change in (lambda: heap.push("a", 1), lambda: heap.push("a", 2), heap.pop, heap.clear):
        change()
        assert heap.changes != seen
        seen = heap.changes
    heap.discard("a")
    list(heap)
    heap.first_keys(5)
    assert heap.changes == seen


@pytest.mark.parametrize("policy", ["plas", "program-plas"])
def test_an_overloaded_queue_keeps_its_heaps_in_proportion_to_its_calls(policy: str) -> None:
    queue, dice, now, count = CallQueue(PRESETS[policy]), random.Random(1), 0, 0
    for _ in range(4_000):
        while queue.waiting_count < 300:
            queue.arrive(call(f"r{count}", f"p{count}", int(dice.expovariate(1 / 20e6))), now)
            count += 1
        now += 100_000
        decision = queue.decide(
            now, Room(slots=16, free_blocks=1 << 30, need_blocks=lambda key: 1, returns_blocks=lambda key: 1)
        )
        for key in decision.preempt:
            queue.preempt(key, now)
        for key in decision.admit:
            queue.start(key, now)
        queue.charge(queue.running_keys, 100_000)
        for key in queue.running_keys:
            if dice.random() < 0.02:
                queue.finish(key, now)
    assert queue._order.entries <= 2 * queue.waiting_count + SLACK
    assert queue._starving.entries <= 2 * queue.waiting_count + SLACK
