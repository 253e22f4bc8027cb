"""What must land together stays small whatever precedes a commit, and a crash between two groups loses no account."""

from __future__ import annotations

import random

import pytest
from agentserving.contract.ids import CallId, EngineId
from agentserving.contract.policy import Accounting
from agentserving_controlplane.store.port import MAX_BATCH_BYTES, MAX_BATCH_WRITES
from agentserving_controlplane.table import call_chunks, rows
from agentserving_controlplane.table.process_table import ProcessTable
from agentserving_controlplane.table.reports import CallReport
from agentserving_controlplane.table.rows import CallRow
from agentserving_controlplane.table.states import Outcome
from controlplane.table_builders import Disk, admit, at, check_invariants, end, key, limits, open_program, report_of
from hypothesis import given, settings
from hypothesis import strategies as st

# Rows of a program, its root and what an admission opens, and the chunks of two calls.
LARGEST_GROUP = 7


class Tree:
    """A root with sub-agents, whose calls come and go while nothing is taken to the store."""

    def __init__(self, dice: random.Random, table: ProcessTable, disk: Disk) -> None:
        self._dice, self.table = dice, table
        self._names = ["p"]
        self._live: list[tuple[str, CallRow]] = []
        # The final reports of engines, which they repeat until they are acknowledged.
        self.reports: list[CallReport] = []
        open_program(table, "p")
        disk.write(table)

    def step(self) -> None:
        """One event."""
        dice, table = self._dice, self.table
        kind = dice.random()
        if kind < 0.15:
            name = f"p/{len(self._names)}"
            open_program(table, name, parent=dice.choice(self._names))
            self._names.append(name)
        elif kind < 0.6 or not self._live:
            name = dice.choice(self._names)
            # A call that an engine has reported is charged at its retry.
            unseen = [call.call_id for _, call in self._live if not call.boot_id]
            again = dice.choice(unseen) if unseen and dice.random() < 0.1 else ""
            self._live = [(of, call) for of, call in self._live if call.call_id != again]
            self._live.append((name, admit(table, name, retry_of_call_id=again)))
        else:
            self._move(*self._live.pop(dice.randrange(len(self._live))))

    def _move(self, name: str, call: CallRow) -> None:
        service_us, kind = self._dice.randrange(1, 9), self._dice.random()
        if kind < 0.2:
            progress = report_of(call, name, service_us, Outcome.NONE, root="p", running=True)
            self.table.report(progress, at(1))
            self._live.append((name, call))
        elif kind < 0.3 and not call.boot_id:
            end(self.table, name, call.call_id)
        else:
            final = report_of(call, name, max(service_us, call.service_us), root="p")
            self.table.report(final, at(1))
            self.reports.append(final)


def sums(table: ProcessTable) -> tuple[int, int, int]:
    """(the root's account, service of all programs, ended calls)."""
    found = table.rows.values()
    return (
        table.rows[key("p")].attained_service_us,
        sum(row.total_service_us for row in found),
        sum(row.calls_completed for row in found),
    )


@given(seed=st.integers(0, 1_000_000))
@settings(max_examples=30, deadline=None)
def test_after_a_crash_between_any_two_groups_every_call_is_charged_once(seed: int) -> None:
    dice = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call_chunks, "MAX_CALLS", 3)
        table, stored = ProcessTable(1, Accounting.SUM), Disk()
        tree = Tree(dice, table, stored)
        for _ in range(dice.randrange(1, 120)):
            tree.step()
        groups = [[(table.store_key(i), table.encode(i)) for i in group] for group in table.take_changes()]
        for landed in range(len(groups) + 1):
            disk = Disk(stored.items)
            for group in groups[:landed]:
                disk.put(group)
            restored = disk.restored(2, accounting=Accounting.SUM)
            check_invariants(restored)
            account, service, _ = sums(restored)
            assert account == service, f"after {landed} of {len(groups)} groups"
            # Engines repeat what was not acknowledged.
            for report in tree.reports:
                restored.report(report, at(2))
            served = sum(report.service_us for report in tree.reports)
            assert sums(restored) == (served, served, len(tree.reports))


def test_thousands_of_events_before_a_commit_stay_in_small_groups() -> None:
    table, disk = ProcessTable(1, Accounting.SUM), Disk()
    open_program(table, "p")
    for number in range(150):
        open_program(table, f"p/{number}", parent="p")
    calls = [("p", admit(table, "p", thread_id=f"t{n}")) for n in range(4000)]
    calls += [(f"p/{n}", admit(table, f"p/{n}")) for n in range(150)]
    disk.write(table)
    for name, call in calls:
        table.report(report_of(call, name, 1, root="p"), at(1))
    disk.write(table)
    assert disk.largest_group <= LARGEST_GROUP
    assert disk.restored(2).rows[key("p")].attained_service_us == len(calls)


def test_a_row_that_is_removed_takes_its_unstored_groups_along() -> None:
    table, disk = ProcessTable(1), Disk()
    open_program(table, "p")
    child = open_program(table, "p/1", parent="p")
    table.report(report_of(admit(table, "p/1"), "p/1", 1, root="p"), at(1))
    table.programs.close(child, Outcome.COMPLETED, at(1))
    admit(table, "p")
    assert table.expiring.expire(child, limits(retention_s=0), at(10**9))
    disk.write(table)
    assert list(disk.items) == [rows.row_key("default", "p")]


def test_the_largest_row_of_a_version_without_chunks_is_restored_into_one_transaction() -> None:
    """Version 0.1 stored up to 1,024 calls in a row of at most 700 kB."""
    table, disk = ProcessTable(1), Disk()
    row, name = open_program(table, "p"), "e" * 128
    parents = [f"p.1.{n}" for n in range(46)]
    for number in range(1024):
        call = CallRow(
            call_id=CallId(f"p.1.{number}"),
            attempt=1,
            thread_id="t" * 60,
            engine_id=EngineId(name),
            attained_service_us=0,
            admit_us=0,
            parents=[CallId(parent) for parent in parents],
        )
        row.calls[call.call_id] = call
    old = rows.encode(row)
    assert 600_000 < len(old) < 700_000
    table = ProcessTable(2)
    table.restore([rows.decode(old)], {}, at(0))
    disk.write(table)
    assert disk.largest_group <= MAX_BATCH_WRITES
    assert disk.largest_group_bytes <= MAX_BATCH_BYTES
    assert len(disk.restored(3).rows[key("p")].calls) == 1024
