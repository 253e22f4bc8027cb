"""The process table: every call counted exactly once, whatever is lost, repeated or reordered."""

from __future__ import annotations

import random

import pytest
from agentserving.contract.policy import Accounting
from agentserving_controlplane.errors import ConflictError, DomainError, ExistsError, InvalidError, NotFoundError
from agentserving_controlplane.table import rows
from agentserving_controlplane.table.process_table import CLOSED, COMPLETED, EXPIRED, ProcessTable, Reported
from hypothesis import given, settings
from hypothesis import strategies as st

S = 1_000_000


def told(call: rows.CallRow, program: str, service: int, outcome: int = COMPLETED) -> Reported:
    return Reported(
        call.call_id, call.attempt, program, "default", call.thread_id, program, call.attained_service_us, "e1", "b",
        service_us=service, outcome=outcome,
    )  # fmt: skip


def test_a_reported_call_moves_the_account_once() -> None:
    table = ProcessTable(1, Accounting.SUM)
    row = table.open("default", "p", 0)
    call = table.admit(row, 0, engine_id="e1")
    for _ in range(3):
        table.report(told(call, "p", 7), 1)
    assert row.attained_service_us == row.total_service_us == 7
    assert row.calls_completed == 1


def test_counters_only_grow() -> None:
    table = ProcessTable(1, Accounting.SUM)
    row = table.open("default", "p", 0)
    call = table.admit(row, 0, engine_id="e1")
    table.report(told(call, "p", 9, outcome=0), 1)
    table.report(told(call, "p", 4), 2)
    assert row.attained_service_us == 9


def test_a_sub_agent_charges_the_root() -> None:
    table = ProcessTable(1, Accounting.SUM)
    root = table.open("default", "p", 0)
    child = table.open("default", "p/1", 0, parent="p")
    table.report(
        Reported(table.admit(child, 0, engine_id="e1").call_id, 1, "p/1", "default", "", "p", 0, "e1",
                 service_us=5, outcome=COMPLETED), 1,
    )  # fmt: skip
    assert root.attained_service_us == 5
    assert table.admit(child, 2, engine_id="e1").attained_service_us == 5


def test_an_abandoned_call_is_charged_with_what_was_reported_last() -> None:
    table = ProcessTable(1, Accounting.SUM)
    row = table.open("default", "p", 0)
    call = table.admit(row, 0, engine_id="e1")
    table.report(told(call, "p", 3, outcome=0), 1)
    table.expire(row, 100 * S, idle_us=1000 * S, silent_us=10 * S, retention_us=S)
    assert row.attained_service_us == 3
    assert not row.calls


def test_an_idle_program_expires_and_is_forgotten_after_its_retention() -> None:
    table = ProcessTable(1)
    row = table.open("default", "p", 0)
    assert not table.expire(row, 11 * S, idle_us=10 * S, silent_us=S, retention_us=5 * S)
    assert (row.state, row.outcome) == (CLOSED, EXPIRED)
    assert table.expire(row, 17 * S, idle_us=10 * S, silent_us=S, retention_us=5 * S)
    assert not table.rows


@pytest.mark.parametrize(
    ("act", "error", "reason"),
    [
        (lambda t: t.find("default", "nobody"), NotFoundError, "PROGRAM_NOT_FOUND"),
        (lambda t: t.find("other", "p"), NotFoundError, "PROGRAM_NOT_FOUND"),
        (lambda t: t.open("default", "p", 0), ExistsError, "PROGRAM_EXISTS"),
        (lambda t: t.open("default", "p", 0, key="k", request="another"), ExistsError, "IDEMPOTENCY_KEY_REUSED"),
        (lambda t: t.open("default", "q", 0, key="k", request="another"), ExistsError, "IDEMPOTENCY_KEY_REUSED"),
        (lambda t: t.open("default", "", 0, key="k" * 129), InvalidError, "KEY_TOO_LONG"),
        (lambda t: t.open("default", "bad id", 0), InvalidError, "BAD_PROGRAM_ID"),
        (lambda t: t.open("default", "c", 0, parent="c"), InvalidError, "CYCLIC_PARENT"),
        (lambda t: t.open("default", "c", 0, parent="nobody"), NotFoundError, "PARENT_NOT_FOUND"),
        (lambda t: t.open("default", "c", 0, name="x" * 129), InvalidError, "NAME_TOO_LONG"),
        (lambda t: t.admit(t.find("default", "closed"), 0, engine_id="e"), ConflictError, "PROGRAM_CLOSED"),
        (
            lambda t: t.admit(t.find("default", "p"), 0, engine_id="e", parents=("p.1.99",)),
            NotFoundError,
            "PARENT_CALL_NOT_FOUND",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_reason(act, error: type[DomainError], reason: str) -> None:
    table = ProcessTable(1)
    table.open("default", "p", 0, key="k")
    table.close(table.open("default", "closed", 0), COMPLETED, 0)
    with pytest.raises(error) as caught:
        act(table)
    assert caught.value.reason == reason


def test_the_same_idempotency_key_gives_the_same_program() -> None:
    table = ProcessTable(1)
    assert table.open("default", "p", 0, key="k") is table.open("default", "p", 5, key="k")


def test_a_row_of_a_newer_version_is_refused() -> None:
    import msgspec

    with pytest.raises(rows.NewerSchemaError, match="upgrade"):
        rows.decode(msgspec.msgpack.encode((rows.SCHEMA_VERSION + 1, {})))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=120, deadline=None)
def test_crashes_repeats_and_reordering_neither_lose_nor_double_a_call(seed: int) -> None:
    """Admissions may be lost in a crash; reports are repeated until acknowledged, in any order."""
    dice = random.Random(seed)
    epoch = 1
    table = ProcessTable(epoch, Accounting.SUM)
    durable: dict[tuple[str, str], bytes] = {}
    unacked: list[Reported] = []
    truth: dict[str, int] = {}
    for _ in range(60):
        action = dice.random()
        if action < 0.45:
            program = f"p{dice.randrange(4)}"
            row = table.rows.get(("default", program)) or table.open("default", program, 0)
            service = dice.randint(0, 50)
            truth[program] = truth.get(program, 0) + service
            unacked.append(told(table.admit(row, 0, engine_id="e1"), program, service))
        elif action < 0.75 and unacked:
            for report in dice.choices(unacked, k=3):
                table.report(report, 1)
        elif action < 0.9:
            for changed in (row for group in table.take_changes() for row in group):
                durable[(changed.tenant, changed.program_id)] = rows.encode(changed)
        else:
            epoch += 1
            table = ProcessTable(epoch, Accounting.SUM)
            table.restore(rows.decode(data) for data in durable.values())
    dice.shuffle(unacked)
    for report in unacked * 2:
        table.report(report, 2)
    assert {p: table.rows[("default", p)].total_service_us for p in truth} == truth
    assert table.open_calls == sum(len(row.calls) for row in table.rows.values()) == 0


def fill(table: ProcessTable, row: rows.ProgramRow, parents: tuple[str, ...]) -> None:
    """Calls of many threads, with all that a call may carry, until no more are taken."""
    for number in range(5000):
        thread = f"{number:08}" + "\N{GRINNING FACE}" * 30
        call = table.admit(
            row, 10**16, engine_id="e" * 128, thread_id=thread, parents=parents[: number % 65], key="k" * 128
        )
        table.report(told(call, row.program_id, 1 << 50, outcome=0), 10**16)
        if number % 3:
            table.end_call(row, call.call_id, COMPLETED, 10**16)


def nest(table: ProcessTable, depth: int) -> None:
    """Programs below programs."""
    parent = ""
    for number in range(depth):
        parent = table.open("default", f"p{number}", 0, parent=parent).program_id


def test_the_largest_rows_of_a_tree_still_fit_into_one_transaction() -> None:
    table = ProcessTable(10**17, Accounting.SUM)
    name = "x" * 128
    row = table.open("default", name, 10**16)
    for _ in range(2 * rows.MAX_MISSING_KEPT):
        table.end_call(row, table.admit(row, 10**16, engine_id=name).call_id, COMPLETED, 10**16)
    parents = tuple(f"{name}.{10**17}.{n}" for n in range(64))
    with pytest.raises(ConflictError, match="calls in flight"):
        fill(table, row, parents)
    assert 2 * len(rows.encode(row)) < 2 * rows.MAX_ROW_BYTES < 3 * 2**19
    assert table.call_bytes[("default", name)] == sum(map(rows.call_bytes, row.calls.values()))


def test_programs_nest_to_a_depth() -> None:
    table = ProcessTable(1)
    with pytest.raises(InvalidError, match="nest at most"):
        nest(table, 100)
    assert len({row.root for row in table.rows.values()}) == 1
