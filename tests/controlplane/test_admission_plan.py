"""Admission is planned, then committed: a refused call leaves no trace, and a retry replaces its attempt."""

from __future__ import annotations

import random
from typing import Any

import pytest
from agentserving.contract.ids import CallId, EngineId, ProgramId, ProgramKey, Tenant
from agentserving.contract.policy import Accounting
from agentserving_controlplane.errors import DomainError, ForbiddenError
from agentserving_controlplane.table import admission_plan
from agentserving_controlplane.table.admission_plan import AdmissionRequest
from agentserving_controlplane.table.process_table import ProcessTable
from agentserving_controlplane.table.programs import OpenRequest
from agentserving_controlplane.table.rows import CallRow
from agentserving_controlplane.table.states import Outcome, ProgramState
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
    snapshot,
)
from hypothesis import given, settings
from hypothesis import strategies as st

# -- refusals leave no trace -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"program_id": "unknown"},
        {"program_id": "bad id!", "implicit": True, "parent_program_id": "new-parent"},
        {"program_id": "closed"},
        {"program_id": "closed", "prompt_tokens": -1, "implicit": True},
        {"program_id": "cancelled", "implicit": True},
        {"program_id": "new", "implicit": True, "parent_program_id": "cancelled"},
        {"program_id": "open", "thread_id": "t" * 129},
        {"program_id": "open", "parent_call_ids": ("open.1.99",)},
        {"program_id": "open", "parent_call_ids": ("nonsense",) * 65},
        {"name": "n" * 129},
        {"parent_program_id": "unknown"},
    ],
)
def test_a_refused_call_leaves_no_trace(fields: dict[str, Any]) -> None:
    table = ProcessTable(1)
    open_program(table, "open")
    table.programs.close(open_program(table, "closed"), Outcome.COMPLETED, at(0))
    table.programs.cancel(open_program(table, "cancelled"), at(0))
    before = snapshot(table)
    with pytest.raises(DomainError):
        admit(table, **{"program_id": "", **fields})
    assert snapshot(table) == before


class Model:
    """A table under random requests of two tenants; every refusal is compared with the state before it."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.table = ProcessTable(3, Accounting.SUM)
        self.disk = Disk()
        self.now = 0
        self.calls: list[tuple[Tenant, CallRow]] = []
        self.refusals: set[str] = set()
        self.admitted = 0

    def tenant(self) -> Tenant:
        return Tenant(self.dice.choice(["acme", "globex"]))

    def program(self) -> ProgramId:
        return ProgramId(self.dice.choice(["a", "b", "c", "a/1", "p-3-1", "bad id", "", ""]))

    def any_call(self) -> CallId:
        known = [call.call_id for _, call in self.calls]
        return self.dice.choice([*known[-12:], CallId("a.3.999"), CallId("nonsense"), CallId("")])

    def admit(self) -> None:
        dice = self.dice
        request = AdmissionRequest(
            tenant=self.tenant(),
            program_id=self.program(),
            thread_id=dice.choice(["", "t", "t" * 200]),
            parent_call_ids=tuple(self.any_call() for _ in range(dice.choice([0, 0, 0, 1, 70]))),
            implicit=dice.random() < 0.6,
            name=dice.choice(["", "n", "n" * 200]),
            parent_program_id=dice.choice([ProgramId(""), ProgramId(""), self.program()]),
            prompt_tokens=dice.choice([0, 10, 10, -1]),
            retry_of_call_id=dice.choice([CallId(""), self.any_call()]),
            final=dice.random() < 0.3,
        )
        before = snapshot(self.table)
        try:
            plan = self.table.plan_admission(request)
        except DomainError as refusal:
            self.refusals.add(refusal.reason)
            assert snapshot(self.table) == before
            return
        assert snapshot(self.table) == before, "a plan changes nothing"
        if dice.random() < 0.2:
            # No engine can take the call: the plan is dropped.
            self.refusals.add("NO_ENGINE")
            return
        open_before = self.table.open_calls
        call = self.table.commit(plan, EngineId(f"e{dice.randrange(3)}"), at(self.now))
        self.admitted += 1
        assert self.table.open_calls == open_before + 1 - (plan.replaces is not None)
        assert call.call_id in self.table.rows[plan.key].calls
        assert plan.key.tenant == request.tenant
        if plan.replaces is not None:
            assert plan.replaces[1] not in self.table.index.calls
            assert call.attempt >= 2
        self.calls.append((request.tenant, call))

    def report(self) -> None:
        if self.calls:
            tenant, call = self.dice.choice(self.calls[-20:])
            outcome = self.dice.choice([Outcome.NONE, Outcome.COMPLETED, Outcome.FAILED])
            program_id = call.call_id.rsplit(".", 2)[0]
            running = self.dice.random() < 0.5
            self.table.report(report_of(call, program_id, 5, outcome, tenant=tenant, running=running), at(self.now))

    def end(self) -> None:
        if self.calls:
            tenant, call = self.dice.choice(self.calls[-20:])
            found = self.table.index.call(call.call_id, tenant)
            if found is not None:
                self.table.end_call(found[0].key, call.call_id, Outcome.CANCELLED, at(self.now))

    def change_a_program(self) -> None:
        row = self.dice.choice(list(self.table.rows.values())) if self.table.rows else None
        if row is None:
            return
        programs = self.table.programs
        before = snapshot(self.table)
        try:
            match self.dice.randrange(6):
                case 0:
                    programs.close(row, Outcome.COMPLETED, at(self.now))
                case 1:
                    for program in list(self.table.index.tree(row)):
                        programs.cancel(program, at(self.now))
                case 2:
                    programs.pause(row, self.dice.random() < 0.5)
                case 3:
                    programs.begin_tool_wait(row, "search", 5, at(self.now))
                case 4:
                    programs.open(OpenRequest(tenant=row.tenant, program_id=row.program_id), at(self.now))
                case 5:
                    if not row.calls:
                        self.now += 20 * S
                        self.table.expiring.expire(row, limits(), at(self.now))
        except DomainError as refusal:
            self.refusals.add(refusal.reason)
            assert snapshot(self.table) == before

    def step(self) -> None:
        self.now += 1
        (act,) = self.dice.choices(
            [self.admit, self.report, self.end, self.change_a_program, self.settle, self.upkeep], [10, 4, 2, 3, 3, 1]
        )
        act()

    def upkeep(self) -> None:
        """Upkeep looks at few rows, and misses none that a look at all of them would find."""
        self.now += self.dice.choice([1, 3, 7, 12, 40]) * S
        table, now = self.table, at(self.now)
        while (call_id := table.expiring.silent_call(limits(), now)) is not None:
            table.end_call(table.index.calls[call_id], call_id, Outcome.EXPIRED, now)
        for call_id, heard_us in table.index.heard_us.items():
            assert now.steady_us - heard_us <= limits().call_idle_us, call_id
        while (table.expiring.schedule_marked(limits(), 10)) == 10:
            pass
        examined = 10
        while examined == 10:
            examined, expired = table.expiring.take_due(limits(), now, 10)
            for row in expired:
                assert table.expiring.expire(row, limits(), now) == (row.key not in table.rows)
        # What has just been closed or has lost its last child is marked, and comes next time.
        marked = table.index.deadlines._marked
        assert not [
            row.key
            for row in table.rows.values()
            if row.key not in marked and table.expiring.expire(row, limits(), now)
        ]

    def settle(self) -> None:
        self.disk.write(self.table)


@given(seed=st.integers(0, 1_000_000))
@settings(max_examples=40, deadline=None)
def test_refusals_change_nothing_and_every_index_stays_true(seed: int) -> None:
    model = Model(seed)
    for _ in range(50):
        model.step()
    check_invariants(model.table)


def test_the_random_requests_meet_every_refusal() -> None:
    """Otherwise the test above would prove less than it says."""
    found: set[str] = set()
    for seed in range(30):
        model = Model(seed)
        for _ in range(60):
            model.step()
        found |= model.refusals
        assert model.admitted
    assert found >= {
        "PROGRAM_NOT_FOUND", "BAD_PROGRAM_ID", "NAME_TOO_LONG", "PARENT_NOT_FOUND", "CYCLIC_PARENT", "NEGATIVE",
        "PROGRAM_CLOSED", "PROGRAM_CANCELLED", "BAD_THREAD_ID", "TOO_MANY_PARENTS", "PARENT_CALL_NOT_FOUND",
        "PROGRAM_EXISTS", "NO_ENGINE",
    }  # fmt: skip


# -- retries ---------------------------------------------------------------------------------------------------------


def test_the_retry_of_a_programs_last_call_is_admitted_and_still_ends_the_program() -> None:
    table = ProcessTable(1)
    first = admit(table, "p", implicit=True, final=True)
    second = admit(table, "p", "e2", implicit=True, final=True, retry_of_call_id=first.call_id)
    row = table.rows[key("p")]
    assert (list(row.calls), second.attempt, row.state) == ([second.call_id], 2, ProgramState.ACTIVE)
    table.report(report_of(second, "p", 1), at(1))
    assert (row.state, row.outcome) == (ProgramState.CLOSED, Outcome.COMPLETED)


@pytest.mark.parametrize("implicit", [True, False])
def test_the_retry_of_a_last_call_that_has_been_ended_continues_its_program(implicit: bool) -> None:
    table = ProcessTable(1)
    open_program(table, "p")
    first = admit(table, "p", final=True)
    end(table, "p", first.call_id, Outcome.FAILED)
    row = table.rows[key("p")]
    assert row.state is ProgramState.CLOSED
    second = admit(table, "p", implicit=implicit, retry_of_call_id=first.call_id)
    assert (second.attempt, row.closing) == (2, True)
    end(table, "p", second.call_id)
    assert row.state is ProgramState.CLOSED


@pytest.mark.parametrize("ended_first", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_the_retry_of_a_call_without_a_program_stays_in_its_program(named: bool, ended_first: bool) -> None:
    table = ProcessTable(1)
    first = admit(table, "", implicit=True)
    program_id = first.call_id.rsplit(".", 2)[0]
    if ended_first:
        end(table, program_id, first.call_id, Outcome.FAILED)
    again = program_id if named else ""
    second = admit(table, again, "e2", implicit=True, retry_of_call_id=first.call_id)
    assert list(table.rows) == [key(program_id)]
    assert (list(table.index.calls), second.attempt) == ([second.call_id], 2)
    assert not table.index.calls_on(EngineId("e1"))
    end(table, program_id, second.call_id)
    assert table.rows[key(program_id)].state is ProgramState.CLOSED


def test_a_retry_under_another_program_ends_its_attempt_where_it_was() -> None:
    table = ProcessTable(1)
    first = admit(table, "p", implicit=True)
    admit(table, "q", implicit=True, retry_of_call_id=first.call_id)
    assert not table.rows[key("p")].calls
    assert len(table.rows[key("q")].calls) == 1


def test_a_retry_cannot_end_a_call_of_another_tenant() -> None:
    table = ProcessTable(1)
    foreign = admit(table, "p", implicit=True)
    request = AdmissionRequest(tenant=Tenant("other"), implicit=True, retry_of_call_id=foreign.call_id)
    call = table.commit(table.plan_admission(request), EngineId("e1"), at(0))
    assert call.attempt == 1
    assert foreign.call_id in table.index.calls


# -- cancelled programs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("ended_before", [False, True])
def test_a_cancelled_program_stays_cancelled_until_it_is_opened(implicit: bool, ended_before: bool) -> None:
    table, disk = ProcessTable(1), Disk()
    row = open_program(table, "p")
    if ended_before:
        table.programs.close(row, Outcome.COMPLETED, at(0))
    table.programs.cancel(row, at(0))
    disk.write(table)
    table = disk.restored(2)
    for fields in ({"program_id": "p"}, {"program_id": "child", "parent_program_id": "p"}):
        if fields["program_id"] == "child" and not implicit:
            continue
        with pytest.raises(ForbiddenError) as caught:
            admit(table, implicit=implicit, **fields)
        assert caught.value.reason == "PROGRAM_CANCELLED"
    row = table.rows[key("p")]
    assert row.outcome is (Outcome.COMPLETED if ended_before else Outcome.CANCELLED), "the first outcome stands"
    assert open_program(table, "p", idempotency_key="again") is row
    assert open_program(table, "p", idempotency_key="again") is row
    assert admit(table, "p", implicit=implicit)


def test_the_retry_of_an_anonymous_call_does_not_escape_its_cancellation() -> None:
    table = ProcessTable(1)
    first = admit(table, "", implicit=True)
    (row,) = table.rows.values()
    table.programs.cancel(row, at(0))
    for _ in range(2):
        with pytest.raises(ForbiddenError):
            admit(table, "", implicit=True, retry_of_call_id=first.call_id)
        end(table, row.program_id, first.call_id)


def test_an_agent_that_goes_on_calling_is_refused_longer_than_a_closed_program_is_retained() -> None:
    table = ProcessTable(1)
    row = open_program(table, "p")
    table.programs.cancel(row, at(0))
    assert not table.expiring.expire(row, limits(retention_s=5), at(29 * S))
    assert table.expiring.expire(row, limits(retention_s=5), at(31 * S))


# -- claims ----------------------------------------------------------------------------------------------------------


def test_a_parent_that_only_the_claim_names_is_opened_with_its_child() -> None:
    table, disk = ProcessTable(1), Disk()
    admit(table, "p/1", implicit=True, parent_program_id="p")
    assert table.rows[key("p/1")].root == "p"
    groups = table.take_changes()
    assert [{item.key for item in group} for group in groups] == [{key("p"), key("p/1")}], "they land together"
    assert disk.items == {}


@pytest.mark.parametrize("parent", ["p", "bad id", "x" * 129])
def test_a_parent_that_cannot_be_one_is_left_out_of_a_claim(parent: str) -> None:
    table = ProcessTable(1)
    admit(table, "p", implicit=True, parent_program_id=parent)
    assert list(table.rows) == [ProgramKey(Tenant("default"), ProgramId("p"))]
    assert table.rows[key("p")].parent == ""


def test_a_generated_id_differs_from_a_parent_that_is_opened_with_it() -> None:
    table = ProcessTable(1)
    admit(table, "", implicit=True, parent_program_id="p-1-1")
    assert len(table.rows) == 2
    check_invariants(table)


def test_the_limit_of_calls_counts_what_a_retry_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_plan, "MAX_CALLS_IN_FLIGHT", 1)
    table = ProcessTable(1)
    first = admit(table, "p", implicit=True)
    assert admit(table, "p", implicit=True, retry_of_call_id=first.call_id).attempt == 2
