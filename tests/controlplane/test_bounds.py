"""What is over a bound is refused, with the true number and a time to retry, and others are served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from agentserving.contract.ids import EngineId, ProgramId, ProgramKey, Tenant
from agentserving.contract.rates import Rate
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.errors import OverloadedError, UnavailableError
from agentserving_controlplane.instant import Instant
from agentserving_controlplane.metrics import exposition
from agentserving_controlplane.policy.tenants import TenantRow
from agentserving_controlplane.state import NEARLY_FULL
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.table.admission_plan import AdmissionRequest
from agentserving_controlplane.table.bounds import Capacity
from agentserving_controlplane.table.process_table import ProcessTable
from agentserving_controlplane.table.programs import OpenRequest
from agentserving_controlplane.table.rows import CallRow, ProgramRow
from agentserving_controlplane.table.states import Outcome
from agentserving_controlplane.table.token_use import DAY_US
from controlplane.leader_builders import ACME, GLOBEX, admit, attach, end, leader, report
from controlplane.table_builders import at, check_invariants, report_of, snapshot
from support.served_plane import SETTINGS

HOUR_US = DAY_US // 24
INITECH = Tenant("initech")


@dataclass(frozen=True)
class Entitled:
    max_programs: int = 0
    max_calls: int = 0
    calls_per_minute: int = 0
    tokens_per_minute: int = 0
    tokens_per_day: int = 0


NO_BOUNDS = Entitled()


def a_table(own: Entitled = NO_BOUNDS, **capacity: int) -> ProcessTable:
    table = ProcessTable(1, capacity=Capacity(**capacity))
    table.bounds.of_tenant = lambda tenant: own if tenant == ACME else NO_BOUNDS
    return table


def opened(table: ProcessTable, program_id: str, tenant: Tenant = ACME, parent: str = "") -> ProgramRow:
    asked = OpenRequest(tenant=tenant, program_id=ProgramId(program_id), parent=ProgramId(parent))
    return table.programs.open(asked, at(0))


def admitted(table: ProcessTable, program_id: str = "", tenant: Tenant = ACME, **fields: object) -> CallRow:
    request = AdmissionRequest(tenant=tenant, program_id=ProgramId(program_id), implicit=True, **fields)  # type: ignore[arg-type]
    return table.commit(table.plan_admission(request), EngineId("e1"), at(0))


def refused(table: ProcessTable, reason: str, ask: Callable[[], object], says: str) -> None:
    before = snapshot(table)
    with pytest.raises(OverloadedError, match=says) as caught:
        ask()
    assert (caught.value.reason, caught.value.retry_after_s > 0) == (reason, True)
    assert snapshot(table) == before, "a refusal leaves nothing"
    check_invariants(table)


def test_a_tenant_has_as_many_live_programs_as_it_is_entitled_to_whatever_opens_them() -> None:
    table = a_table(Entitled(max_programs=3))
    first = opened(table, "p0")
    opened(table, "p1", parent="p0")
    table.programs.pause(opened(table, "p2"), True)
    says = "has 3 live programs, of at most 3"
    refused(table, "TOO_MANY_PROGRAMS", lambda: opened(table, "p3"), says)
    refused(table, "TOO_MANY_PROGRAMS", lambda: admitted(table), says)
    refused(table, "TOO_MANY_PROGRAMS", lambda: admitted(table, "new"), says)
    refused(table, "TOO_MANY_PROGRAMS", lambda: admitted(table, "new", parent_program_id=ProgramId("p0")), says)
    admitted(table, "p0")
    opened(table, "p3", GLOBEX)
    table.programs.close(first, Outcome.COMPLETED, at(0))
    opened(table, "p3")
    refused(table, "TOO_MANY_PROGRAMS", lambda: admitted(table, "p0"), says)
    table.programs.cancel(first, at(0))
    refused(table, "TOO_MANY_PROGRAMS", lambda: opened(table, "p0"), says)


def test_a_program_and_its_unknown_parent_count_as_two() -> None:
    table = a_table(Entitled(max_programs=2))
    opened(table, "p0")
    admitted(table, "child", parent_program_id=ProgramId("unknown"))
    assert [key.program_id for key in table.rows] == ["p0", "child"], "a claim that has no room is left out"


def test_a_bound_of_a_tenant_does_not_raise_that_of_the_cluster() -> None:
    table = a_table(Entitled(max_programs=100), tenant_programs=1)
    opened(table, "p0")
    refused(table, "TOO_MANY_PROGRAMS", lambda: opened(table, "p1"), "of at most 1")


def test_when_the_table_is_nearly_full_a_tenant_gets_its_equal_part_and_no_more() -> None:
    table = a_table(programs=100)
    for number in range(90):
        opened(table, f"p{number}", GLOBEX)
    opened(table, "p", ACME)
    refused(
        table, "TOO_MANY_PROGRAMS", lambda: opened(table, "more", GLOBEX), "90 are of this tenant, whose part is 50"
    )
    for number in range(8):
        opened(table, f"p{number}", ACME)
    opened(table, "p0", INITECH)
    refused(table, "TOO_MANY_PROGRAMS", lambda: opened(table, "p1", INITECH), "100 programs are live, of at most 100")


def test_calls_at_once_of_a_tenant_are_bounded_with_those_that_only_their_engine_still_runs() -> None:
    table = a_table(Entitled(max_calls=2))
    running, _ = admitted(table, "p"), admitted(table, "q")
    says = "has 2 calls in flight, of at most 2"
    refused(table, "TOO_MANY_CALLS", lambda: admitted(table, "p"), says)
    admitted(table, "p", GLOBEX)
    retried = admitted(table, "p", retry_of_call_id=running.call_id)
    assert retried.attempt == 2, "a retry takes the place of the call that it replaces"
    seen = report_of(retried, "p", 1, Outcome.NONE, tenant=ACME)
    table.report(seen, at(1))
    table.end_call(ProgramKey(ACME, ProgramId("p")), retried.call_id, Outcome.CANCELLED, at(1))
    refused(table, "TOO_MANY_CALLS", lambda: admitted(table, "p"), says)
    table.report(report_of(retried, "p", 2, tenant=ACME), at(2))
    admitted(table, "p")


def test_paused_programs_are_bounded_for_each_tenant_and_in_all() -> None:
    table = a_table(paused_programs=3, tenant_paused_programs=2)
    for number in range(2):
        table.programs.pause(opened(table, f"p{number}"), True)
    row, other = opened(table, "p2"), opened(table, "p", GLOBEX)
    refused(table, "TOO_MANY_PAUSED", lambda: table.programs.pause(row, True), "2 programs of this tenant are paused")
    table.programs.pause(other, True)
    last = opened(table, "p", INITECH)
    refused(table, "TOO_MANY_PAUSED", lambda: table.programs.pause(last, True), "3 programs are paused, of at most 3")
    table.programs.pause(table.rows[ProgramKey(ACME, ProgramId("p0"))], True)
    table.programs.close(table.rows[ProgramKey(ACME, ProgramId("p0"))], Outcome.COMPLETED, at(0))
    table.programs.pause(last, True)
    check_invariants(table)


def test_of_too_many_closed_programs_the_oldest_go_first_and_cancelled_ones_last() -> None:
    table = a_table(closed_programs=3)
    rows = [opened(table, f"p{number}") for number in range(7)]
    child = opened(table, "child", parent="p1")
    table.programs.cancel(rows[0], at(0))
    for row in rows[1:6]:
        table.programs.close(row, Outcome.COMPLETED, at(0))
    forgotten = []
    while found := table.expiring.forget_surplus(3, 1) or table.expiring.forget_surplus(3, 2):
        forgotten += [row.program_id for row in found]
        check_invariants(table)
    assert forgotten == ["p2", "p3", "p4"], "p1 has a child that is live"
    assert child.key in table.rows
    assert {row.program_id for row in table.rows.values()} == {"p0", "p1", "p5", "p6", "child"}
    assert not table.expiring.forget_surplus(3, 10)


async def test_a_nearly_full_store_refuses_new_programs_and_serves_those_that_exist() -> None:
    async with leader(MemoryStore(max_bytes=20_000)) as plane:
        await attach(plane)
        number = 0
        while plane.store_fill < NEARLY_FULL:
            await plane.programs.open(OpenRequest(tenant=ACME, program_id=ProgramId(f"p{number}"), name="n" * 100))
            number += 1
            await plane.tend_store()
        says = "of the store's space is in use"
        refused(plane.table, "STORE_NEARLY_FULL", lambda: admit(plane), says)
        refused(plane.table, "STORE_NEARLY_FULL", lambda: admit(plane, "new"), says)
        with pytest.raises(OverloadedError, match=says):
            await plane.programs.open(OpenRequest(tenant=ACME, program_id=ProgramId("new")))
        end(plane, admit(plane, "p0"), Outcome.FAILED, never_started=True)
        await plane.programs.pause(ProgramKey(ACME, ProgramId("p0")))
        assert plane.commits.healthy, "no write has failed"
        assert f"agentserving_store_fill_ratio {plane.store_fill}".encode() in exposition(plane)


async def test_calls_and_tokens_a_minute_of_a_tenant_are_bounded_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [Instant(20_000 * DAY_US, 0)]
    monkeypatch.setattr(ControlPlane, "now", staticmethod(lambda: clock[0]))

    def later(seconds: float) -> None:
        clock[0] = Instant(clock[0].unix_us + int(seconds * 1e6), clock[0].steady_us + int(seconds * 1e6))

    async with leader() as plane:
        plane.tenants.put(TenantRow(tenant=ACME, calls_per_minute=3, tokens_per_minute=600, tokens_per_day=10_000))
        session = await attach(plane)
        first = admit(plane, "p")
        assert first.rates == (
            Rate("requests", 3, 2, 20.0), Rate("tokens", 600, 600, 0.0), Rate("tokens", 10_000, 10_000, 86_400.0),
        )  # fmt: skip
        assert admit(plane, "p", GLOBEX).rates == (), "a tenant without bounds"
        for _ in range(2):
            admit(plane, "p")
        says = "may use 3 calls a minute: try again in 20 s"
        refused(plane.table, "RATE_LIMITED", lambda: admit(plane, "p"), says)
        admit(plane, "p", GLOBEX)
        later(20)
        admit(plane, "p")
        later(60)
        await report(session, first, prompt_tokens=700, output_tokens=50, outcome=Outcome.COMPLETED)
        with pytest.raises(OverloadedError, match="600 tokens of prompts and answers a minute") as caught:
            admit(plane, "p")
        assert caught.value.retry_after_s == pytest.approx(15.1), "150 too many flow back in 15 s, and one more"
        assert Rate("tokens", 600, 0, 75.0) in caught.value.rates
        later(15.15)
        assert admit(plane, "p").rates[1].remaining == 1
        plane.tenants.put(TenantRow(tenant=ACME, calls_per_minute=1))
        assert admit(plane, "p").rates == (Rate("requests", 1, 0, 60.0),)
        plane.tenants.remove(ACME)
        assert admit(plane, "p").rates == ()


async def test_a_refused_call_takes_nothing_from_its_tenants_rate() -> None:
    async with leader() as plane:
        plane.tenants.put(TenantRow(tenant=ACME, calls_per_minute=2))
        for _ in range(5):
            with pytest.raises(UnavailableError):
                admit(plane, "p")
        await attach(plane)
        for _ in range(2):
            admit(plane, "p")


def test_a_tenant_that_nothing_was_said_about_has_the_default_bounds() -> None:
    table = a_table(Entitled(max_programs=3, max_calls=2), default_tenant_programs=2, default_tenant_calls=1)
    for number in range(2):
        opened(table, f"p{number}", GLOBEX)
    refused(table, "TOO_MANY_PROGRAMS", lambda: opened(table, "p2", GLOBEX), "has 2 live programs, of at most 2")
    admitted(table, "p0", GLOBEX)
    refused(table, "TOO_MANY_CALLS", lambda: admitted(table, "p0", GLOBEX), "1 calls in flight, of at most 1")
    for number in range(3):
        opened(table, f"p{number}")
    for _ in range(2):
        admitted(table, "p0")
    refused(table, "TOO_MANY_CALLS", lambda: admitted(table, "p0"), "2 calls in flight, of at most 2")


def test_one_tenants_default_is_a_small_part_of_the_table_where_clients_have_keys() -> None:
    with_keys, without = SETTINGS.capacity(keys=True), SETTINGS.capacity(keys=False)
    assert with_keys.default_tenant_programs <= with_keys.programs / 20
    assert with_keys.default_tenant_calls
    assert (without.default_tenant_programs, without.default_tenant_calls) == (without.tenant_programs, 0)


async def test_tokens_of_a_day_are_bounded_across_leaders_until_midnight(monkeypatch: pytest.MonkeyPatch) -> None:
    store, day = MemoryStore(), [Instant(20_000 * DAY_US + 6 * HOUR_US, 0)]
    monkeypatch.setattr(ControlPlane, "now", staticmethod(lambda: day[0]))
    own = Entitled(tokens_per_day=100)
    for tokens in (60, 50):
        async with leader(store) as plane:
            plane.table.bounds.of_tenant = lambda tenant: own if tenant == ACME else NO_BOUNDS
            session = await attach(plane)
            await report(
                session, admit(plane, "p"), prompt_tokens=tokens - 1, output_tokens=1, outcome=Outcome.COMPLETED
            )
            await report(session, admit(plane, "p", GLOBEX), GLOBEX, prompt_tokens=500, outcome=Outcome.COMPLETED)
    async with leader(store) as plane:
        plane.table.bounds.of_tenant = lambda tenant: own if tenant == ACME else NO_BOUNDS
        await attach(plane)
        with pytest.raises(OverloadedError, match="has used 110 tokens today, of at most 100") as caught:
            admit(plane, "p")
        assert (caught.value.reason, caught.value.retry_after_s) == ("TOKENS_USED_UP", 18 * 3600)
        admit(plane, "p", GLOBEX)
        day[0] = Instant(20_001 * DAY_US, 1)
        admit(plane, "p")
        await plane.tick()
        await plane.commits.flush()
        assert not (await store.load("tokens/")).items, "yesterday's use is forgotten"


async def test_upkeep_forgets_surplus_programs_in_the_store_as_well() -> None:
    async with leader(max_closed_programs=5) as plane:
        for number in range(12):
            await plane.programs.open(OpenRequest(tenant=ACME, program_id=ProgramId(f"p{number:02}")))
            await plane.programs.close(ProgramKey(ACME, ProgramId(f"p{number:02}")), Outcome.NONE)
        await plane.tick()
        await plane.commits.flush()
        assert sorted(key.program_id for key in plane.table.rows) == [f"p{number:02}" for number in range(7, 12)]
        assert len((await plane._store.load("programs/")).items) == 5
