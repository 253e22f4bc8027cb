"""Calls that ended before their engine did: what it adds is charged, once, whoever leads by then."""

from __future__ import annotations

import pytest
from agentserving.contract.policy import Accounting
from agentserving_controlplane.errors import OverloadedError
from agentserving_controlplane.table import admission_plan, late_charges, rows
from agentserving_controlplane.table.process_table import ProcessTable
from agentserving_controlplane.table.states import Outcome
from controlplane.table_builders import (
    Disk,
    S,
    admit,
    at,
    check_invariants,
    end,
    key,
    limits,
    open_program,
    report_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from(["report", "end", "restart", "repeat"]), st.integers(1, 20)), max_size=12),
    st.sampled_from([Accounting.SUM, Accounting.CRITICAL_PATH]),
)
def test_what_is_charged_depends_neither_on_who_ends_a_call_nor_on_who_leads(
    events: list[tuple[str, int]], accounting: Accounting
) -> None:
    """Against one call that its engine alone ends: any early end, repeated reports, failovers at any point."""
    disk, table = Disk(), ProcessTable(1, accounting)
    open_program(table, "p")
    call = admit(table, "p")
    service_us = 0
    first = report_of(call, "p", 1, Outcome.NONE, running=True)
    table.report(first, at(0))
    for step, (event, amount) in enumerate(events, start=1):
        match event:
            case "report":
                service_us = max(1, service_us) + amount
                table.report(report_of(call, "p", service_us, Outcome.NONE, running=True), at(step))
            case "repeat":
                table.report(first, at(step))
            case "end":
                end(table, "p", call.call_id, now=step)
            case "restart":
                disk.write(table)
                table = disk.restored(epoch=step + 1, accounting=accounting)
        check_invariants(table)
    final = report_of(call, "p", max(1, service_us) + 5)
    for _ in range(2):
        table.report(final, at(99))
    row = table.rows[key("p")]
    assert (row.attained_service_us, row.total_service_us, row.calls_completed) == (max(1, service_us) + 5,) * 2 + (1,)
    disk.write(table)
    assert (len(table.late), sorted(disk.items)) == (0, [rows.row_key("default", "p")]), "nothing is left behind"


def test_calls_ended_early_are_in_flight_for_the_bound_of_their_program_until_their_engine_ends_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission_plan, "MAX_CALLS_IN_FLIGHT", 70)
    disk, table = Disk(), ProcessTable(1)
    open_program(table, "p")
    calls = [admit(table, "p") for _ in range(70)]
    for call in calls:
        table.report(report_of(call, "p", 1, Outcome.NONE), at(1))
        end(table, "p", call.call_id, now=1)
    assert len(table.late) == 70
    disk.write(table)
    table = disk.restored(epoch=2)
    assert len([name for name in disk.items if name.startswith(rows.LATE_PREFIX)]) == 3
    with pytest.raises(OverloadedError, match="at most 70"):
        admit(table, "p")
    table.report(report_of(calls[0], "p", 2), at(2))
    admit(table, "p")


def test_a_call_of_which_an_engine_says_nothing_any_more_is_given_up_and_its_row_expires() -> None:
    disk, table = Disk(), ProcessTable(1)
    open_program(table, "p")
    call = admit(table, "p")
    table.report(report_of(call, "p", 1, Outcome.NONE), at(0))
    end(table, "p", call.call_id)
    table.programs.close(table.rows[key("p")], Outcome.COMPLETED, at(0))
    bounds = limits(call_idle_s=10, retention_s=5)
    disk.write(table)

    def due(now: int) -> list[object]:
        while table.expiring.schedule_marked(bounds, 10) == 10:
            pass
        return [row.program_id for row in table.expiring.take_due(bounds, at(now), 10)[1]]

    assert due(6 * S) == [], "its engine may still report"
    assert not table.expiring.forget_silent(bounds, at(10 * S))
    assert table.expiring.forget_silent(bounds, at(11 * S))
    assert due(11 * S) == ["p"]
    disk.write(table)
    assert sorted(disk.items) == [rows.row_key("default", "p")]


def test_a_list_of_late_calls_with_the_longest_ids_is_small() -> None:
    disk, table = Disk(), ProcessTable(10**17)
    name = "x" * 128
    open_program(table, name)
    for _ in range(late_charges.MAX_LISTED + 1):
        call = admit(table, name, "e" * 128, parent_call_ids=())
        seen = report_of(call, name, 1 << 50, Outcome.NONE, boot_id="b" * 128, attained_service_us=1 << 50)
        table.report(seen, at(10**16))
        end(table, name, call.call_id, now=10**16)
    disk.write(table)
    lists = [value for store_key, value in disk.items.items() if store_key.startswith(rows.LATE_PREFIX)]
    assert len(lists) == 2
    assert max(map(len, lists)) < 25_000
