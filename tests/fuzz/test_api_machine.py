"""Any order of RPCs against a small model: states, tenancy, accounts, keys and failovers are as the model says.

A refused RPC leaves nothing. `make fuzz` runs it for hours (AGENTSERVING_FUZZ_EXAMPLES).
"""

from __future__ import annotations

import os
from typing import Any
from unittest import mock

import pytest
from agentserving.v1 import call_service_pb2 as calls_pb
from agentserving.v1 import key_service_pb2 as keys_pb
from agentserving.v1 import program_service_pb2 as pb
from agentserving.v1 import types_pb2
from agentserving_controlplane import call_ends
from agentserving_controlplane.table.reports import CallReport
from agentserving_controlplane.table.states import Outcome
from controlplane.table_builders import check_invariants, key, snapshot
from fuzz.api_client import ADMIN, Api
from fuzz.api_model import Call, Model, State
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.served_plane import Refusal

EXAMPLES = int(os.environ.get("AGENTSERVING_FUZZ_EXAMPLES", "50"))
STATES = {
    types_pb2.PROGRAM_STATE_ACTIVE: State.OPEN,
    types_pb2.PROGRAM_STATE_PAUSED: State.OPEN,
    types_pb2.PROGRAM_STATE_CLOSED: State.CLOSED,
}
# Both tenants use the same ids.
TENANTS, IDS = ("acme", "globex"), ("p", "q", "r")
tenants, ids = st.sampled_from(TENANTS), st.sampled_from(IDS)
numbers = st.integers(0, 1000)
# Of budgets and additions, microseconds of engines; a report adds up to 1000.
amounts = st.one_of(st.just(0), st.integers(1, 1500))


def _budget(engine_us: int) -> types_pb2.Budget | None:
    return types_pb2.Budget(engine_us=engine_us) if engine_us else None


class ApiMachine(RuleBasedStateMachine):
    """Two tenants, one engine, one leader at a time."""

    def __init__(self) -> None:
        super().__init__()
        # A call without its engine's last word ends by a timer; here the engine has the last word.
        self._timers = mock.patch.multiple(call_ends, EXCHANGE_OVER_S=1e6, NEXT_TRY_S=1e6)
        self._timers.start()
        self.api, self.model = Api(), Model()
        self.valid: dict[str, str] = {}
        self.revoked: list[str] = []

    @initialize()
    def make_keys(self) -> None:
        for tenant in TENANTS:
            self._make_key(tenant)
        self.open(0, "", 500)
        self.open(1, "")

    def teardown(self) -> None:
        try:
            for call in self.model.calls:
                if not call.over:
                    self._report(call, 1, Outcome.COMPLETED)
            for tenant, program in self.model.programs:
                self._accounts_are_right(tenant, program)
        finally:
            self.api.close()
            self._timers.stop()

    def _make_key(self, tenant: str) -> None:
        made = self.api.ask(self.api.keys.CreateKey, keys_pb.CreateKeyRequest(tenant=tenant), ADMIN.text)
        self.valid[tenant] = made.text

    def _ask(self, rpc: Any, request: Any, tenant: str, refused_for: str) -> Any:
        """The answer; or None when it is refused, for exactly this reason and without a trace."""
        before = snapshot(self.api.plane.table) if refused_for else None
        answer = self.api.ask(rpc, request, self.valid[tenant])
        if refused_for:
            assert isinstance(answer, Refusal), f"{answer} instead of {refused_for}"
            assert answer.reason == refused_for
            assert snapshot(self.api.plane.table) == before
            return None
        assert not isinstance(answer, Refusal), f"{answer.reason}: {answer.message}"
        return answer

    # -- programs ------------------------------------------------------------------------------------------------

    @rule(which=numbers, parent=st.one_of(st.just(""), ids), limit_us=amounts)
    def open(self, which: int, parent: str, limit_us: int = 0) -> None:
        tenant, program = self._named(which)
        refused_for = self.model.open_refusal((tenant, program), parent, limit_us)
        request = pb.OpenProgramRequest(program_id=program, parent_program_id=parent, budget=_budget(limit_us))
        if self._ask(self.api.programs.OpenProgram, request, tenant, refused_for):
            self.model.opened((tenant, program), parent, limit_us)

    def _spent_us(self, tenant: str, program: str) -> int:
        """What the tree of a program has used, as its leader says; the invariant bounds it."""
        rows = self.api.plane.table.rows
        row = rows.get(key(program, tenant))
        return 0 if row is None else rows[row.root_key].tree_engine_us

    def _named(self, which: int) -> tuple[str, str]:
        """A program, usually one that exists: most of what can go wrong does so with those."""
        known = list(self.model.programs)
        if known and which % 5:
            return known[which // 5 % len(known)]
        return TENANTS[which % 2], IDS[which // 10 % len(IDS)]

    def _known(self, tenant: str, program: str) -> str:
        return "" if (tenant, program) in self.model.programs else "PROGRAM_NOT_FOUND"

    @rule(which=numbers)
    def end_program(self, which: int) -> None:
        tenant, program = self._named(which)
        request = pb.CloseProgramRequest(program_id=program)
        if self._ask(self.api.programs.CloseProgram, request, tenant, self._known(tenant, program)):
            self.model.close((tenant, program))

    @rule(which=numbers)
    def cancel(self, which: int) -> None:
        tenant, program = self._named(which)
        request = pb.CancelProgramRequest(program_id=program)
        if self._ask(self.api.programs.CancelProgram, request, tenant, self._known(tenant, program)):
            self.model.cancel((tenant, program))

    @rule(which=numbers)
    def pause(self, which: int) -> None:
        tenant, program = self._named(which)
        request = pb.PauseProgramRequest(program_id=program)
        if self._ask(self.api.programs.PauseProgram, request, tenant, self.model.pause_refusal((tenant, program))):
            self.model.root((tenant, program)).paused = True

    @rule(which=numbers, add_us=amounts, addition_id=st.sampled_from(("", "a", "b")))
    def resume(self, which: int, add_us: int, addition_id: str) -> None:
        tenant, program = self._named(which)
        spent_us = self._spent_us(tenant, program)
        refused_for = self.model.resume_refusal((tenant, program), add_us, addition_id, spent_us)
        request = pb.ResumeProgramRequest(program_id=program, add=_budget(add_us), addition_id=addition_id)
        if self._ask(self.api.programs.ResumeProgram, request, tenant, refused_for):
            self.model.resumed((tenant, program), add_us, addition_id)

    # -- calls ---------------------------------------------------------------------------------------------------

    @rule(which=numbers, implicit=st.booleans(), retry=st.one_of(st.none(), numbers))
    def admit(self, which: int, implicit: bool, retry: int | None) -> None:
        self._admit(*self._named(which), implicit=implicit, retry=retry)

    def _admit(self, tenant: str, program: str, *, implicit: bool, retry: int | None) -> None:
        running = [c for c in self.model.calls if (c.tenant, c.program) == (tenant, program) and not c.over]
        retried = running[retry % len(running)].call_id if retry is not None and running else ""
        spent_us = self._spent_us(tenant, program)
        refused_for = self.model.call_refusal((tenant, program), implicit=implicit, spent_us=spent_us)
        request = calls_pb.AdmitCallRequest(program_id=program, implicit=implicit, retry_of_call_id=retried)
        admitted = self._ask(self.api.calls.AdmitCall, request, tenant, refused_for)
        if admitted is not None:
            known = self.model.programs.get((tenant, program))
            if known is None or known.state is State.CLOSED:
                self.model.opened((tenant, program), "")
            assert admitted.call_id not in [call.call_id for call in self.model.calls]
            self.model.calls.append(Call(tenant, program, admitted.call_id, admitted.attempt))

    @precondition(lambda self: self.model.calls)
    @rule(at=numbers, more_us=numbers, outcome=st.sampled_from([Outcome.NONE, *list(Outcome)[1:4]]))
    def engine_reports(self, at: int, more_us: int, outcome: Outcome) -> None:
        call = self.model.calls[at % len(self.model.calls)]
        if not call.over:
            self._report(call, more_us, outcome)

    @precondition(lambda self: self.model.calls)
    @rule(at=numbers)
    def engine_repeats_itself(self, at: int) -> None:
        call = self.model.calls[at % len(self.model.calls)]
        if call.over:
            before = snapshot(self.api.plane.table.rows)
            self._report(call, 0, Outcome.COMPLETED)
            assert snapshot(self.api.plane.table.rows) == before

    def _report(self, call: Call, more_us: int, outcome: Outcome) -> None:
        call.service_us += more_us
        call.over |= bool(outcome)
        root = self.model.programs[call.tenant, call.program].root
        names = {
            "call_id": call.call_id,
            "attempt": call.attempt,
            "program_id": call.program,
            "tenant": call.tenant,
            "root": root,
        }
        report = {**names, "engine_id": "e1", "boot_id": "b", "service_us": call.service_us, "outcome": outcome}
        self.api.report(CallReport(**report))

    @precondition(lambda self: self.model.calls)
    @rule(tenant=tenants, at=numbers, outcome=st.integers(1, 3), never_started=st.booleans())
    def end_call(self, tenant: str, at: int, outcome: int, never_started: bool) -> None:
        call = self.model.calls[at % len(self.model.calls)]
        request = calls_pb.EndCallRequest(call_id=call.call_id, outcome=outcome, never_started=never_started)  # type: ignore[arg-type]
        if tenant == call.tenant:
            self._ask(self.api.calls.EndCall, request, tenant, "")
            return
        before = snapshot(self.api.plane.table)
        self.api.ask(self.api.calls.EndCall, request, self.valid[tenant])
        assert snapshot(self.api.plane.table) == before, "another tenant's call does not exist"

    # -- keys and leaders ----------------------------------------------------------------------------------------

    @rule(tenant=tenants)
    def replace_key(self, tenant: str) -> None:
        # A client does not administrate.
        self._ask(self.api.keys.CreateKey, keys_pb.CreateKeyRequest(tenant=tenant), tenant, "NOT_ALLOWED")
        old = self.valid[tenant]
        self._make_key(tenant)
        request = keys_pb.RevokeKeyRequest(key_id=old.split("_")[1])
        assert not isinstance(self.api.ask(self.api.keys.RevokeKey, request, ADMIN.text), Refusal)
        self.revoked.append(old)

    @precondition(lambda self: self.revoked)
    @rule(at=numbers, program=ids)
    def a_revoked_key_opens_nothing(self, at: int, program: str) -> None:
        before = snapshot(self.api.plane.table)
        request = pb.OpenProgramRequest(program_id=program)
        answer = self.api.ask(self.api.programs.OpenProgram, request, self.revoked[at % len(self.revoked)])
        assert answer.reason == "KEY_REVOKED"
        assert snapshot(self.api.plane.table) == before

    @rule(lost=st.one_of(st.none(), st.lists(numbers, max_size=3)))
    def fail_over(self, lost: list[int] | None) -> None:
        """`lost`: calls that a leader admits and never writes before it crashes; None = it ends well."""
        if lost is not None:
            self.api.write_nothing_more()
        for which in lost or ():
            self._admit(*self._named(which), implicit=True, retry=which)
        self.api.fail_over()
        # The sidecar's journal and the running calls: what the new leader has not seen, and much that it has.
        for call in self.model.calls:
            self._report(call, 0, Outcome.COMPLETED if call.over else Outcome.NONE)
        if lost:
            # Claims in headers are not awaited by the store: a program that only they opened may be lost, or closed.
            for (tenant, program), known in list(self.model.programs.items()):
                self._resync(tenant, program, known)

    def _resync(self, tenant: str, program: str, known: Any) -> None:
        row = self.api.plane.table.rows.get(key(program, tenant))
        if row is None:
            assert not [call for call in self.model.calls if (call.tenant, call.program) == (tenant, program)]
            del self.model.programs[tenant, program]
        elif known.state is State.OPEN and row.state == 4 and not row.cancelled:
            known.state, known.paused = State.CLOSED, False

    # -- what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def the_table_is_what_the_model_says(self) -> None:
        check_invariants(self.api.plane.table)
        rows = {(k.tenant, k.program_id): row for k, row in self.api.plane.table.rows.items()}
        assert rows.keys() == self.model.programs.keys()
        for each, program in self.model.programs.items():
            assert rows[each].cancelled == (program.state is State.CANCELLED), each
            assert (rows[each].state == 4) == (program.state is not State.OPEN), each
            root = self.api.plane.table.index.root_of(rows[each])
            assert root.paused == self.model.root(each).paused
            assert (root.budget.engine_us if root.budget else 0) == self.model.root(each).limit_us
            # Calls that have ended count with all that was said of them, and others at most with that.
            least, most = (self.model.service_us(each, of_tree=True, over=over) for over in (True, False))
            assert least <= root.tree_engine_us <= most

    @rule(tenant=tenants)
    def a_tenant_sees_its_programs_and_no_others(self, tenant: str) -> None:
        states = [*STATES, types_pb2.PROGRAM_STATE_TOOL_WAIT]
        listed = self._ask(self.api.programs.ListPrograms, pb.ListProgramsRequest(states=states), tenant, "")
        own = [program for owner, program in self.model.programs if owner == tenant]
        assert sorted(each.program_id for each in listed.programs) == sorted(own)
        assert {each.tenant for each in listed.programs} <= {tenant}

    def _accounts_are_right(self, tenant: str, program: str) -> None:
        request = pb.GetProgramRequest(program_id=program)
        found = self._ask(self.api.programs.GetProgram, request, tenant, "").program
        assert found.total_service_us == self.model.service_us((tenant, program))
        assert found.attained_service_us == self.model.service_us((tenant, program), of_tree=True)
        assert not found.calls, "every call has ended"


ApiMachine.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.timeout(0 if EXAMPLES > 100 else 300)
class TestApi(ApiMachine.TestCase):  # type: ignore[misc,name-defined]
    """Run by pytest."""
