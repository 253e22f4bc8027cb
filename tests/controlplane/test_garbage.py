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

garbage.YOUNG, garbage.MIDDLE, garbage.PAID = 1000, 2, 3
collector = garbage.Collector()
"""


def run(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_full_collections_are_not_made_by_the_collector_itself_and_survivors_are_examined_once() -> None:
    run("""
        rows = allocate(200_000)
        collector.freeze()
        complete = gc.get_stats()[2]["collections"]
        young = allocate(20_000)
        collector.round()
        assert gc.get_stats()[2]["collections"] == complete
        assert gc.get_freeze_count() > 215_000
        # What the next collection would walk.
        assert len(gc.get_objects()) < 5000
    """)


def test_a_new_cycle_is_found_soon() -> None:
    run("""
        collector.freeze()
        node = cycle()
        young = allocate(5_000)
        assert node() is None
    """)


def test_a_cycle_that_was_frozen_alive_is_found_once_a_complete_collection_is_paid_for() -> None:
    run("""
        node = Node()
        node.itself = node
        dead = weakref.ref(node)
        collector.freeze()
        frozen = gc.get_freeze_count()
        del node
        kept = []
        while dead() is not None and len(kept) < 1000:
            kept.append(allocate(3_000))
            collector.round()
        assert dead() is None
        assert 3_000 * len(kept) >= garbage.PAID * frozen
        collector.round()
        assert gc.get_freeze_count() >= 3_000 * len(kept), "what is left is frozen again"
    """)


def test_a_round_without_allocations_costs_nothing() -> None:
    run("""
        collector.freeze()
        before = gc.get_stats()
        collector.round()
        assert gc.get_stats() == before
    """)
