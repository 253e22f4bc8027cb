"""The process table: every call counted exactly once, whatever is lost, repeated or reordered."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from agentserving.contract.ids import ProgramKey
from agentserving.contract.policy import Accounting
from agentserving_controlplane.errors import ConflictError, DomainError, ExistsError, InvalidError, NotFoundError
from agentserving_controlplane.table import numbering, rows
from agentserving_controlplane.table.process_table import ProcessTable
from agentserving_controlplane.table.reports import CallReport
from agentserving_controlplane.table.states import Outcome, ProgramState
from controlplane.table_builders import (
    DEFAULT,
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


def test_a_reported_call_moves_the_account_once() -> None:
    table = ProcessTable(1, Accounting.SUM)
    row = open_program(table, "p")
    call = admit(table, "p")
    for _ in range(3):
        table.report(report_of(call, "p", 7), at(1))
    assert row.attained_service_us == row.total_service_us == 7
    assert row.calls_completed == 1


def test_counters_only_grow() -> None:
    table = ProcessTable(1, Accounting.SUM)
    row = open_program(table, "p")
    call = admit(table, "p")
    table.report(report_of(call, "p", 9, Outcome.NONE), at(1))
    table.report(report_of(call, "p", 4), at(2))
    assert row.attained_service_us == 9


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(0, 5), st.sampled_from(Accounting))
def test_ending_a_call_before_its_engine_does_saves_nothing(
    progress: list[int], ended_after: int, accounting: Accounting
) -> None:
    """EndCall(never_started) or a retry while the call runs: the engine's later reports still count."""
    honest, early = ProcessTable(1, accounting), ProcessTable(1, accounting)
    accounts = []
    for table in (honest, early):
        row = open_program(table, "p")
        call = admit(table, "p")
        last = len(progress) - 1
        for step, service_us in enumerate(sorted(progress)):
            outcome = Outcome.COMPLETED if step == last else Outcome.NONE
            table.report(report_of(call, "p", service_us, outcome), at(step))
            if table is early and step == ended_after and step != last:
                assert table.end_call(key("p"), call.call_id, Outcome.CANCELLED, at(step))
        check_invariants(table)
        accounts.append((row.attained_service_us, row.total_service_us))
        table.report(report_of(call, "p", 10_000), at(99))
        assert (row.attained_service_us, row.total_service_us) == accounts[-1], "the last report is final"
    assert accounts[0] == accounts[1]


def test_a_sub_agent_charges_the_root() -> None:
    table = ProcessTable(1, Accounting.SUM)
    root = open_program(table, "p")
    open_program(table, "p/1", parent="p")
    table.report(report_of(admit(table, "p/1"), "p/1", 5, root="p"), at(1))
    assert root.attained_service_us == 5
    assert admit(table, "p/1").attained_service_us == 5


def test_no_two_calls_of_a_process_share_an_id_whatever_their_tenants() -> None:
    table = ProcessTable(1)
    calls = []
    for tenant in ("acme", "globex"):
        for _ in range(2):
            request = rows_request(tenant)
            calls.append(table.commit(table.plan_admission(request), "e1", at(0)))  # type: ignore[arg-type]
    assert len({call.call_id for call in calls}) == len(calls) == table.open_calls == len(table.index.calls_on("e1"))  # type: ignore[arg-type]


def rows_request(tenant: str) -> Any:
    from agentserving_controlplane.table.admission_plan import AdmissionRequest

    return AdmissionRequest(tenant=tenant, program_id="triage", implicit=True)  # type: ignore[arg-type]


# -- expiry ----------------------------------------------------------------------------------------------------------


def test_an_abandoned_call_is_charged_with_its_last_report() -> None:
    table = ProcessTable(1, Accounting.SUM)
    row = open_program(table, "p")
    call = admit(table, "p")
    table.report(report_of(call, "p", 3, Outcome.NONE), at(1))
    silent = table.expiring.silent_call(limits(), at(100 * S))
    assert silent == call.call_id
    end(table, "p", silent, Outcome.EXPIRED)
    assert row.attained_service_us == 3
    assert not row.calls


def test_an_idle_program_expires_and_is_forgotten_after_its_retention() -> None:
    table = ProcessTable(1)
    row = open_program(table, "p")
    assert not table.expiring.expire(row, limits(), at(11 * S))
    assert (row.state, row.outcome) == (ProgramState.CLOSED, Outcome.EXPIRED)
    assert table.expiring.expire(row, limits(), at(17 * S))
    assert not table.rows
    check_invariants(table)


def test_a_step_of_the_wall_clock_expires_nothing() -> None:
    table = ProcessTable(1)
    row = open_program(table, "p")
    call = admit(table, "p")
    stepped = at(S)._replace(unix_us=3600 * S)
    assert table.expiring.silent_call(limits(), stepped) is None
    end(table, "p", call.call_id, now=S)
    assert not table.expiring.expire(row, limits(), stepped)
    assert row.state is ProgramState.ACTIVE


def test_after_a_restart_ages_count_from_the_recovery() -> None:
    table, disk = ProcessTable(1), Disk()
    open_program(table, "p", now=10**12)
    disk.write(table)
    table = disk.restored(2)
    row = table.rows[key("p")]
    assert not table.expiring.expire(row, limits(), at(9 * S))
    assert row.state is ProgramState.ACTIVE
    table.expiring.expire(row, limits(), at(11 * S))
    assert row.outcome is Outcome.EXPIRED


def test_a_program_may_wait_for_a_tool_twice_as_long_as_it_said() -> None:
    table = ProcessTable(1)
    row = open_program(table, "p")
    table.programs.begin_tool_wait(row, "review", 100 * S, at(0))
    table.expiring.expire(row, limits(), at(199 * S))
    assert row.state is ProgramState.TOOL_WAIT
    table.expiring.expire(row, limits(), at(201 * S))
    assert (row.state, row.tool) == (ProgramState.CLOSED, "")


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "error", "reason"),
    [
        (lambda t: t.find(DEFAULT, "nobody"), NotFoundError, "PROGRAM_NOT_FOUND"),
        (lambda t: t.find("other", "p"), NotFoundError, "PROGRAM_NOT_FOUND"),
        (lambda t: open_program(t, "p"), ExistsError, "PROGRAM_EXISTS"),
        (lambda t: open_program(t, "p", idempotency_key="k", digest="x"), ExistsError, "IDEMPOTENCY_KEY_REUSED"),
        (lambda t: open_program(t, "q", idempotency_key="k", digest="x"), ExistsError, "IDEMPOTENCY_KEY_REUSED"),
        (lambda t: open_program(t, idempotency_key="k" * 129), InvalidError, "KEY_TOO_LONG"),
        (lambda t: open_program(t, "bad id"), InvalidError, "BAD_PROGRAM_ID"),
        (lambda t: open_program(t, "c", parent="c"), InvalidError, "CYCLIC_PARENT"),
        (lambda t: open_program(t, "c", parent="nobody"), NotFoundError, "PARENT_NOT_FOUND"),
        (lambda t: open_program(t, "c", name="x" * 129), InvalidError, "NAME_TOO_LONG"),
        (lambda t: admit(t, "closed"), ConflictError, "PROGRAM_CLOSED"),
        (lambda t: admit(t, "p", parent_call_ids=("p.1.99",)), NotFoundError, "PARENT_CALL_NOT_FOUND"),
    ],
)
def test_an_impossible_request_is_refused_with_its_reason(
    act: Callable[[ProcessTable], object], error: type[DomainError], reason: str
) -> None:
    table = ProcessTable(1)
    open_program(table, "p", idempotency_key="k")
    table.programs.close(open_program(table, "closed"), Outcome.COMPLETED, at(0))
    with pytest.raises(error) as caught:
        act(table)
    assert caught.value.reason == reason


def test_the_same_idempotency_key_opens_the_same_program() -> None:
    table = ProcessTable(1)
    assert open_program(table, "p", idempotency_key="k") is open_program(table, "p", idempotency_key="k", now=5)


def test_programs_nest_to_a_depth() -> None:
    table = ProcessTable(1)

    def nest(depth: int) -> None:
        parent = ""
        for number in range(depth):
            parent = open_program(table, f"p{number}", parent=parent).program_id

    with pytest.raises(InvalidError, match="nest at most"):
        nest(100)
    assert len({row.root for row in table.rows.values()}) == 1


# -- the store -------------------------------------------------------------------------------------------------------


def test_a_row_of_a_newer_version_is_refused() -> None:
    with pytest.raises(rows.NewerSchemaError, match="upgrade"):
        rows.decode(msgspec.msgpack.encode((rows.SCHEMA_VERSION + 1, {})))


def test_a_row_that_version_0_1_has_written_is_read() -> None:
    """With its pause (a state then), the times that were stored of calls, and more calls than a row holds now."""
    count = 300
    calls = {
        f"p.1.{n}": {
            "call_id": f"p.1.{n}", "attempt": 1, "thread_id": "t", "engine_id": "e1", "attained_service_us": 5,
            "admit_us": 9, "heard_us": 9,
        }
        for n in range(count)
    }  # fmt: skip
    old = {
        "program_id": "p", "tenant": "default", "open_us": 9, "root": "p", "state": 3, "calls": calls,
        "admitted": {1: count}, "held": False,
    }  # fmt: skip
    disk = Disk()
    disk.items[rows.row_key("default", "p")] = msgspec.msgpack.encode((1, old))
    table = disk.restored(2)
    row = table.rows[key("p")]
    assert (row.paused, len(row.calls)) == (True, count)
    check_invariants(table)
    disk.write(table)
    assert len(disk.items) > 1
    assert disk.restored(3).rows[key("p")].calls == row.calls


@given(seed=st.integers(0, 10_000))
@settings(max_examples=120, deadline=None)
def test_crashes_repeats_and_reordering_neither_lose_nor_double_a_call(seed: int) -> None:
    """Admissions may be lost in a crash; reports are repeated until acknowledged, in any order."""
    dice = random.Random(seed)
    epoch = 1
    table, disk = ProcessTable(epoch, Accounting.SUM), Disk()
    unacked: list[CallReport] = []
    truth: dict[str, int] = {}
    for _ in range(60):
        action = dice.random()
        if action < 0.45:
            program = f"p{dice.randrange(4)}"
            service = dice.randint(0, 50)
            truth[program] = truth.get(program, 0) + service
            for _ in range(dice.choice([1, 1, 40])):
                unacked.append(report_of(admit(table, program, implicit=True), program, service))
                service = 0
        elif action < 0.75 and unacked:
            for report in dice.choices(unacked, k=3):
                table.report(report, at(1))
        elif action < 0.9:
            disk.write(table)
        else:
            epoch += 1
            table = disk.restored(epoch, accounting=Accounting.SUM)
            check_invariants(table)
    dice.shuffle(unacked)
    for report in unacked * 2:
        table.report(report, at(2))
    assert {p: table.rows[key(p)].total_service_us for p in truth} == truth
    assert table.open_calls == 0
    check_invariants(table)


def test_lost_admissions_between_those_of_other_programs_are_counted_once_each() -> None:
    table, disk = ProcessTable(1, Accounting.SUM), Disk()
    open_program(table, "p")
    open_program(table, "q")
    disk.write(table)
    lost = []
    for _ in range(2000):
        lost.append(admit(table, "p"))
        admit(table, "q")
    table = disk.restored(2, accounting=Accounting.SUM)
    # Newest first: those below are adopted nevertheless, as far as the row remembers.
    kept = lost[-rows.MAX_MISSING_KEPT :]
    for call in [*reversed(kept), *kept]:
        table.report(report_of(call, "p", 1), at(1))
    assert table.rows[key("p")].total_service_us == len(kept)


def test_the_numbers_that_a_row_has_adopted_stay_bounded_over_epochs() -> None:
    row = rows.ProgramRow(program_id="p", tenant="default", open_us=0)  # type: ignore[arg-type]
    for epoch in range(400):
        for number in range(0, 30, 3):
            assert not numbering.is_counted(row, epoch, number)
            numbering.count_adopted(row, epoch, number)
            assert numbering.is_counted(row, epoch, number)
    assert sum(map(len, row.adopted.values())) <= rows.MAX_MISSING_KEPT
    assert len(row.admitted) <= rows.MAX_EPOCHS_KEPT
    assert row.adopted.keys() <= row.admitted.keys()


def test_accounts_of_two_tenants_programs_of_one_name_are_apart() -> None:
    table = ProcessTable(1, Accounting.SUM)
    for tenant, service in (("acme", 100 * S), ("globex", 1)):
        call = table.commit(table.plan_admission(rows_request(tenant)), "e1", at(0))  # type: ignore[arg-type]
        table.report(report_of(call, "triage", service, tenant=tenant), at(1))
    accounts = {k.tenant: row.attained_service_us for k, row in table.rows.items()}
    assert accounts == {"acme": 100 * S, "globex": 1}
    assert ProgramKey("acme", "triage") in table.rows  # type: ignore[arg-type]
