"""The collector leaves rows alone, and still finds cycles: new ones soon, frozen ones once that has been paid for.

In processes of their own, because the collector belongs to the whole process.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

PRELUDE = """
import gc, weakref
from agentserving_controlplane import garbage

class Node:
    pass

def cycle():
    node = Node()
    node.itself = node
    return weakref.ref(node)

def allocate(count):
    return [[] for _ in range(count)]

garbage.YOUNG, garbage.MIDDLE = 1000, 2
collector = garbage.Collector()
"""


def run(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_rows_are_examined_neither_by_the_collector_itself_nor_by_rounds_in_which_little_was_allocated() -> None:
    run("""
        rows = allocate(200_000)
        collector.freeze()
        complete = gc.get_stats()[2]["collections"]
        young = allocate(10_000)
        assert gc.get_stats()[2]["collections"] == complete, "no full collection by itself"
        frozen = gc.get_freeze_count()
        assert frozen >= 200_000
        collector.round()
        # It has looked at what came since, and froze it as well.
        assert gc.get_freeze_count() >= frozen + 10_000
        assert len(gc.get_objects()) < 1000
    """)


def test_a_new_cycle_is_found_by_the_next_round() -> None:
    run("""
        collector.freeze()
        node = cycle()
        young = allocate(10_000)
        collector.round()
        assert node() is None
    """)


def test_a_cycle_that_was_frozen_alive_is_found_once_as_much_has_been_allocated_as_there_is() -> None:
    run("""
        node = Node()
        node.itself = node
        dead = weakref.ref(node)
        collector.freeze()
        del node
        kept = []
        for _ in range(1000):
            kept.append(allocate(3_000))
            collector.round()
            if dead() is None:
                break
        assert dead() is None
        assert len(kept) > 1, "a complete collection is not made at every round"
    """)


def test_a_round_without_allocations_costs_nothing() -> None:
    run("""
        collector.freeze()
        before = gc.get_stats()
        collector.round()
        assert gc.get_stats() == before
    """)
