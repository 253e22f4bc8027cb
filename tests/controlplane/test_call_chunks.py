"""Programs with many parallel calls: no row grows with them, no change costs more because of them."""

from __future__ import annotations

import random

import pytest
from agentserving.contract.policy import Accounting
from agentserving_controlplane.errors import OverloadedError
from agentserving_controlplane.store.port import MAX_BATCH_BYTES, MAX_BATCH_WRITES
from agentserving_controlplane.table import admission_plan, call_chunks, late_charges, rows
from agentserving_controlplane.table.process_table import ProcessTable
from agentserving_controlplane.table.states import Outcome
from controlplane.table_builders import Disk, admit, at, check_invariants, end, key, open_program, report_of


def test_thousands_of_calls_in_flight_survive_a_restart_and_end_one_by_one() -> None:
    table, disk = ProcessTable(1, Accounting.SUM), Disk()
    open_program(table, "p")
    calls = [admit(table, "p", thread_id=f"t{n}") for n in range(3000)]
    disk.write(table)
    table = disk.restored(2, accounting=Accounting.SUM)
    row = table.rows[key("p")]
    assert [call.call_id for call in calls] == sorted(row.calls, key=lambda c: int(c.rpartition(".")[2]))
    check_invariants(table)
    random.Random(0).shuffle(calls)
    disk.largest_group = 0
    for call in calls:
        table.report(report_of(call, "p", 3), at(1))
        disk.write(table)
    assert disk.largest_group <= 2, "the end of a call writes its row and its chunk"
    assert (row.total_service_us, len(row.calls)) == (9000, 0)
    assert list(disk.items) == [rows.row_key("default", "p")], "empty chunks are deleted"
    assert disk.restored(3).rows[key("p")].total_service_us == 9000


def test_what_an_admission_writes_does_not_grow_with_the_calls_in_flight() -> None:
    table, disk = ProcessTable(1), Disk()
    open_program(table, "p")
    sizes = []
    for _ in range(2000):
        admit(table, "p")
        disk.largest_group_bytes = 0
        disk.write(table)
        sizes.append(disk.largest_group_bytes)
    assert max(sizes[1000:]) < 1.1 * max(sizes[:200])


def test_progress_of_every_call_at_the_same_time_fits_into_batches_of_the_store() -> None:
    table, disk = ProcessTable(1), Disk()
    open_program(table, "p")
    calls = [admit(table, "p") for _ in range(2 * MAX_BATCH_WRITES * call_chunks.MAX_CALLS)]
    disk.write(table)
    disk.largest_group = 0
    for call in calls:
        table.report(report_of(call, "p", 5, Outcome.NONE, running=True), at(1))
    disk.write(table)
    assert disk.largest_group == 1, "progress of one call does not depend on that of another"
    assert all(c.service_us == 5 for c in disk.restored(2).rows[key("p")].calls.values())


def test_too_many_calls_are_refused_with_the_limit_and_a_time_to_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_plan, "MAX_CALLS_IN_FLIGHT", 5)
    table = ProcessTable(1)
    open_program(table, "p")
    calls = [admit(table, "p") for _ in range(5)]
    with pytest.raises(OverloadedError, match="at most 5 calls in flight") as caught:
        admit(table, "p")
    assert (caught.value.reason, caught.value.retry_after_s) == ("TOO_MANY_CALLS", 1.0)
    assert admit(table, "p", retry_of_call_id=calls[0].call_id).attempt == 2, "a retry takes its own place"
    end(table, "p", calls[1].call_id)
    assert admit(table, "p").attempt == 1


def test_the_largest_rows_of_a_tree_and_a_chunk_fit_into_one_batch() -> None:
    """Calls with all they may carry, of more threads than a row retains, in a row of the longest history."""
    epoch = 10**17
    table, disk = ProcessTable(epoch, Accounting.SUM), Disk()
    root, name = "r" * 128, "x" * 128
    open_program(table, root, now=10**16)
    row = open_program(table, name, parent=root, name="n" * 128, now=10**16)
    for _ in range(2 * rows.MAX_MISSING_KEPT):
        end(table, name, admit(table, name, name, now=10**16).call_id, now=10**16)
    row.adopted[1] = [10**17] * rows.MAX_MISSING_KEPT
    row.admitted.update(dict.fromkeys(range(10**16, 10**16 + rows.MAX_EPOCHS_KEPT), 10**17))
    parents = tuple(f"{name}.{epoch}.{n}" for n in range(64))
    for number in range(1500):
        thread = f"{number:08}" + "\N{GRINNING FACE}" * 30
        fields = {"thread_id": thread, "parent_call_ids": parents[: number % 65], "idempotency_key": "k" * 128}
        call = admit(table, name, "e" * 128, now=10**16, **fields)
        table.report(report_of(call, name, 1 << 50, Outcome.NONE, root=root, engine_id="e" * 128), at(10**16))
        if number % 3 == 0:
            table.report(report_of(call, name, 1 << 50, root=root, engine_id="e" * 128), at(10**16))
        disk.write(table)
    assert len(row.threads) == rows.MAX_THREADS_KEPT
    assert max(map(len, disk.items.values())) < rows.MAX_ROW_BYTES
    chunk_bytes = max(len(v) for k, v in disk.items.items() if k.startswith(rows.CHUNKS_PREFIX))
    late_bytes = 600 * late_charges.MAX_LISTED
    assert 2 * rows.MAX_ROW_BYTES + chunk_bytes + late_bytes < MAX_BATCH_BYTES
    check_invariants(table)
