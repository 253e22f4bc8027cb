"""Builders for tests of the process table: time is in microseconds, and both clocks start together."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

from agentserving.contract.ids import CallId, EngineId, ProgramId, ProgramKey, Tenant
from agentserving_controlplane.instant import Instant
from agentserving_controlplane.table import budgets, rows
from agentserving_controlplane.table.admission_plan import AdmissionRequest
from agentserving_controlplane.table.call_chunks import ROW
from agentserving_controlplane.table.expiry import Limits
from agentserving_controlplane.table.process_table import ProcessTable
from agentserving_controlplane.table.programs import OpenRequest
from agentserving_controlplane.table.reports import CallReport
from agentserving_controlplane.table.rows import CallRow, ProgramRow
from agentserving_controlplane.table.states import Outcome

S = 1_000_000
DEFAULT = Tenant("default")


def at(us: int) -> Instant:
    return Instant(us, us)


def key(program_id: str, tenant: str = "default") -> ProgramKey:
    return ProgramKey(Tenant(tenant), ProgramId(program_id))


def limits(idle_s: float = 10, call_idle_s: float = 10, retention_s: float = 5) -> Limits:
    return Limits(
        program_idle_us=int(idle_s * S),
        call_idle_us=int(call_idle_s * S),
        closed_retention_us=int(retention_s * S),
    )


def open_program(
    table: ProcessTable, program_id: str = "", *, parent: str = "", now: int = 0, **fields: Any
) -> ProgramRow:
    asked = OpenRequest(tenant=DEFAULT, program_id=ProgramId(program_id), parent=ProgramId(parent), **fields)
    return table.programs.open(asked, at(now))


def admit(table: ProcessTable, program_id: str, engine_id: str = "e1", *, now: int = 0, **fields: Any) -> CallRow:
    request = AdmissionRequest(tenant=DEFAULT, program_id=ProgramId(program_id), **fields)
    return table.commit(table.plan_admission(request), EngineId(engine_id), at(now))


def report_of(
    call: CallRow, program_id: str, service_us: int = 0, outcome: Outcome = Outcome.COMPLETED, **fields: Any
) -> CallReport:
    given: dict[str, Any] = {
        "call_id": call.call_id,
        "attempt": call.attempt,
        "program_id": program_id,
        "tenant": "default",
        "thread_id": call.thread_id,
        "root": program_id,
        "attained_service_us": call.attained_service_us,
        "engine_id": call.engine_id,
        "boot_id": "b",
        "service_us": service_us,
        "outcome": outcome,
        **fields,
    }
    return CallReport(**given)


def end(table: ProcessTable, program_id: str, call_id: str, outcome: Outcome = Outcome.CANCELLED, now: int = 0) -> None:
    table.end_call(key(program_id), CallId(call_id), outcome, at(now))


class Disk:
    """What the store holds of a table: `write` takes the changes, `restored` is what a new process reads."""

    def __init__(self, items: Mapping[str, bytes] | None = None) -> None:
        self.items: dict[str, bytes] = dict(items or {})
        self.largest_group_bytes = self.largest_group = 0

    def write(self, table: ProcessTable) -> None:
        for group in table.take_changes():
            self.put([(table.store_key(item), table.encode(item)) for item in group])

    def put(self, group: Sequence[tuple[str, bytes | None]]) -> None:
        """Stores what must land together."""
        self.largest_group = max(self.largest_group, len(group))
        self.largest_group_bytes = max(self.largest_group_bytes, sum(len(k) + len(v or b"") for k, v in group))
        for store_key, value in group:
            if value is None:
                self.items.pop(store_key, None)
            else:
                self.items[store_key] = value

    def remove(self, program_id: str) -> None:
        del self.items[rows.row_key("default", program_id)]

    def restored(self, epoch: int, **fields: Any) -> ProcessTable:
        table = ProcessTable(epoch, **fields)
        programs = [rows.decode(value) for k, value in self.items.items() if k.startswith(rows.ROWS_PREFIX)]
        chunks: dict[ProgramKey, dict[int, list[CallRow]]] = {}
        for store_key, value in self.items.items():
            if store_key.startswith(rows.CHUNKS_PREFIX):
                program, number = rows.list_parts(store_key)
                chunks.setdefault(program, {})[number] = rows.decode_calls(value)
            elif store_key.startswith(rows.LATE_PREFIX):
                table.late.restore(*rows.list_parts(store_key), rows.decode_calls(value), at(0))
        table.restore(programs, chunks, at(0))
        return table


def snapshot(table: ProcessTable) -> Any:
    """Everything that a table is made of, pending changes and counters included; compares by value."""
    return copy.deepcopy(_plain(table))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, MethodType):
        return value.__name__
    if type(value).__module__.startswith("agentserving_controlplane.table") and not isinstance(value, int):
        names = getattr(value, "__struct_fields__", None) or getattr(type(value), "__slots__", None) or vars(value)
        return {name: _plain(getattr(value, name)) for name in names}
    return value


def check_invariants(table: ProcessTable) -> None:
    """Every index agrees with the rows that it was derived from."""
    index = table.index
    calls = {call_id: row.key for row in table.rows.values() for call_id in row.calls}
    assert index.calls == calls
    assert index.heard_us.keys() == calls.keys()
    assert index.active_us.keys() == table.rows.keys()
    assert index.running_calls == sum(call.running for row in table.rows.values() for call in row.calls.values())
    tenants = {row.tenant for row in table.rows.values()}
    for tenant in tenants:
        rows_of = [row for row in table.rows.values() if row.tenant == tenant]
        assert index.live.of(tenant) == sum(row.state != 4 for row in rows_of)
        assert index.calls_of.of(tenant) == sum(len(row.calls) for row in rows_of)
        assert index.paused_of.of(tenant) == sum(row.paused for row in rows_of)
        assert table.late.of_tenant.of(tenant) == sum(table.late.count(row.key) for row in rows_of)
    assert index.live.total == sum(row.state != 4 for row in table.rows.values())
    for tally in (index.live, index.calls_of, index.paused_of, table.late.of_tenant):
        assert tally._counts.keys() <= tenants
    assert sorted(index.closed.oldest(len(index.closed))) == sorted(
        k for k, row in table.rows.items() if row.state == 4
    )
    assert set(index.closed._cancelled) == {k for k, row in table.rows.items() if row.cancelled}
    assert index.busy == sum(bool(row.calls) for row in table.rows.values())
    assert index.paused == {row.key for row in table.rows.values() if row.paused}
    assert index.spent == {row.key for row in table.rows.values() if row.state != 4 and budgets.is_spent(row)}
    on_engine: dict[EngineId, dict[CallId, ProgramKey]] = {}
    of_tree: dict[ProgramKey, dict[EngineId, int]] = {}
    for row in table.rows.values():
        for call in row.calls.values():
            on_engine.setdefault(call.engine_id, {})[call.call_id] = row.key
            engines = of_tree.setdefault(row.root_key, {})
            engines[call.engine_id] = engines.get(call.engine_id, 0) + 1
    assert {engine: found for engine, found in index._on_engine.items() if found} == on_engine
    assert index._engines_of_tree == of_tree
    late = {call_id for lists in table.late._lists.values() for calls in lists.values() for call_id in calls}
    assert late == table.late._places.keys() == table.late._heard_us.keys()
    assert not late & calls.keys(), "a call is in flight, or has been charged"
    assert table.late._lists.keys() <= table.rows.keys()
    for row in table.rows.values():
        in_row = index.chunks.in_row(row)
        stored = dict(row.calls if in_row is None else in_row)
        for call_id in row.calls:
            place = index.place_of(row, row.calls[call_id])
            if place != ROW:
                stored[call_id] = index.chunks.chunk(row.key, place)[call_id]
        assert stored == row.calls
        assert row.state == 4 or not row.closing or row.calls, "a closing program without calls must be closed"
