"""Trees share nothing in the table, so programs could be divided over several leaders by their roots (decision 0113).

Each history is applied to one table, and divided by root to several: the accounts and the sums are the same, and no
transaction contains rows of two trees.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from typing import Any

from agentserving_controlplane.table.process_table import ProcessTable
from agentserving_controlplane.table.rows import CallRow
from agentserving_controlplane.table.states import Outcome
from controlplane.table_builders import admit, at, check_invariants, end, key, open_program, report_of
from hypothesis import given, settings
from hypothesis import strategies as st

Event = Callable[[ProcessTable, dict[str, CallRow]], None]


def shard_of(root: str, shards: int) -> int:
    return zlib.crc32(root.encode()) % shards


def history(dice: random.Random, steps: int) -> list[tuple[str, Event]]:
    """(root, event) in order; a call has a name of the test's, since its id depends on the table."""
    trees = {f"r{number}": [f"r{number}"] for number in range(8)}
    events: list[tuple[str, Event]] = [(root, lambda table, _, root=root: open_program(table, root)) for root in trees]  # type: ignore[misc]
    live: list[tuple[str, str, str]] = []
    for step in range(steps):
        root = dice.choice(list(trees))
        kind = dice.random()
        if kind < 0.15:
            name, parent = f"{root}/{step}", dice.choice(trees[root])
            trees[root].append(name)
            events.append((root, _opens(name, parent)))
        elif kind < 0.6 or not live:
            live.append((root, dice.choice(trees[root]), f"c{step}"))
            events.append((root, _admits(live[-1][1], live[-1][2])))
        else:
            root, name, call = live.pop(dice.randrange(len(live)))
            events.append((root, _ends(root, name, call, dice.randrange(1, 9), reported=dice.random() < 0.8)))
    return events


def _opens(name: str, parent: str) -> Event:
    return lambda table, calls: open_program(table, name, parent=parent)


def _admits(name: str, call: str) -> Event:
    def event(table: ProcessTable, calls: dict[str, CallRow]) -> None:
        calls[call] = admit(table, name)

    return event


def _ends(root: str, name: str, call: str, service_us: int, *, reported: bool) -> Event:
    def event(table: ProcessTable, calls: dict[str, CallRow]) -> None:
        row = calls.pop(call)
        if reported:
            table.report(report_of(row, name, service_us, root=root), at(1))
        else:
            end(table, name, row.call_id, Outcome.CANCELLED)

    return event


def facts(table: ProcessTable) -> dict[str, Any]:
    return {
        found.program_id: (
            row.attained_service_us, row.account_wait_us, row.total_service_us, row.calls_completed, row.state,
            len(row.calls), row.engines,
        )
        for found, row in table.rows.items()
    }  # fmt: skip


@given(seed=st.integers(0, 2**32), shards=st.integers(2, 5))
@settings(deadline=None, max_examples=60)
def test_a_history_divided_by_root_gives_the_same_accounts(seed: int, shards: int) -> None:
    events = history(random.Random(seed), 120)
    whole: tuple[ProcessTable, dict[str, CallRow]] = ProcessTable(1), {}
    parts: list[tuple[ProcessTable, dict[str, CallRow]]] = [(ProcessTable(1), {}) for _ in range(shards)]
    for root, event in events:
        event(*whole)
        event(*parts[shard_of(root, shards)])
    for table, _ in (whole, *parts):
        check_invariants(table)
    together = {name: fact for table, _ in parts for name, fact in facts(table).items()}
    assert together == facts(whole[0])


@given(seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_no_transaction_contains_rows_of_two_trees(seed: int) -> None:
    dice = random.Random(seed)
    table, calls = ProcessTable(1), dict[str, CallRow]()
    for _, event in history(dice, 120):
        event(table, calls)
        # Sometimes several events precede a commit.
        for group in table.take_changes() if dice.random() < 0.5 else ():
            roots = {table.rows[item.key].root for item in group if item.key in table.rows}
            assert len(roots) == 1, group
    assert key("r0") in table.rows
