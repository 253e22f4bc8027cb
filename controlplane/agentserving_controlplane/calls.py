"""Admission of calls and their ends by clients. Nothing here waits: gateways stand in the path of every request."""

from __future__ import annotations

import asyncio

import msgspec
import structlog
from agentserving.contract import ticket
from agentserving.contract.ids import CallId, EngineId, ProgramId, ProgramKey, Tenant

from agentserving_controlplane.engines.directives import CancelCalls, ToolWait
from agentserving_controlplane.engines.load_balancer import Wanted
from agentserving_controlplane.errors import NotFoundError
from agentserving_controlplane.instant import Instant
from agentserving_controlplane.state import LeaderState
from agentserving_controlplane.table.admission_plan import AdmissionPlan, AdmissionRequest
from agentserving_controlplane.table.rows import CallRow, ProgramRow, call_parts
from agentserving_controlplane.table.states import Outcome

log = structlog.get_logger()

TICKET_LIFETIME_S = 600
# A call whose client is gone ends with its engine's final report, or after this time without one.
ABANDONED_S = 1.5


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """An admitted call: where it runs, and its ticket."""

    call_id: CallId
    attempt: int
    program_id: ProgramId
    engine_id: EngineId
    engine_address: str
    sidecar_address: str
    ticket: str
    epoch: int


class EndOfCall(msgspec.Struct, frozen=True, kw_only=True):
    """EndCall; `never_started`: no engine has seen the call."""

    tenant: Tenant
    call_id: CallId
    outcome: Outcome
    never_started: bool = False


class CallOperations:
    """AdmitCall and EndCall."""

    def __init__(self, state: LeaderState) -> None:
        self._state = state

    def admit(self, request: AdmissionRequest) -> Admission:
        """Admits a call, or raises a refusal that leaves no trace."""
        state = self._state
        state.check_room()
        now = state.now()
        if request.idempotency_key:
            known = state.keys.find(request.tenant, request.idempotency_key, request.digest, now.steady_us)
            if known is not None:
                return self._admission(known.row, known.call)
        plan = state.table.plan_admission(request)
        key = state.settings.ticket_keys()[0]
        wanted = Wanted(
            program=plan.root,
            prompt_tokens=request.prompt_tokens,
            model=request.model,
            exclude=request.exclude_engine_ids,
            holding=plan.engines,
        )
        engines = state.balancer.choose_many(wanted, now.steady_us)
        # Nothing below refuses.
        call = self._commit(plan, engines[0].engine_id, now)
        row = state.table.index.rows[plan.key]
        if request.idempotency_key:
            state.keys.add(row, call, now.steady_us)
        state.settle()
        return self._admission(row, call, key)

    def _commit(self, plan: AdmissionPlan, engine_id: EngineId, now: Instant) -> CallRow:
        state = self._state
        if plan.replaces is not None:
            found = state.table.index.call(plan.replaces[1], plan.request.tenant)
            if found is not None:
                state.engines.call_failed(found[1].engine_id, now.steady_us)
        call = state.table.commit(plan, engine_id, now)
        state.engines.call_admitted(engine_id, call.call_id)
        if plan.ends_tool_wait:
            self._end_tool_wait(plan)
        return call

    def _end_tool_wait(self, plan: AdmissionPlan) -> None:
        directive = ToolWait(
            root=plan.root,
            program_id=plan.key.program_id,
            thread_id=plan.thread_id,
            waiting=False,
            expected_us=0,
        )
        for engine_id in plan.engines:
            self._state.links.send(engine_id, directive)

    def _admission(self, row: ProgramRow, call: CallRow, key: bytes | None = None) -> Admission:
        state = self._state
        engine = state.engines.reachable(call.engine_id)
        root = state.table.index.root_of(row)
        signed = ticket.sign(
            ticket.Ticket(
                call_id=call.call_id,
                attempt=call.attempt,
                program_id=row.program_id,
                root_program_id=row.root,
                tenant=row.tenant,
                thread_id=call.thread_id,
                engine_id=engine.engine_id,
                attained_service_us=call.attained_service_us,
                wait_us=root.account_wait_us,
                policy_version=state.policy.version,
                epoch=state.epoch,
                # By the wall clock, which is the one that the engine shares.
                expires_unix_s=call.admit_us // 1_000_000 + TICKET_LIFETIME_S,
                program_arrival_us=root.open_us,
                class_name=root.name,
            ),
            key if key is not None else state.settings.ticket_keys()[0],
        )
        return Admission(
            call_id=call.call_id,
            attempt=call.attempt,
            program_id=row.program_id,
            engine_id=engine.engine_id,
            engine_address=engine.address,
            sidecar_address=engine.sidecar_address,
            ticket=signed,
            epoch=state.epoch,
        )

    # -- ends ----------------------------------------------------------------------------------------------------

    def end(self, request: EndOfCall) -> None:
        """Ends a call that no engine will report. Repeating it changes nothing. NotFoundError.

        A call that an engine has reported ends with that engine's final report. Its client is gone, so the engine is
        asked to abort it; if it does not answer within ABANDONED_S, the call ends with its last report.
        """
        state = self._state
        outcome = request.outcome or Outcome.CANCELLED
        found = state.table.index.call(request.call_id, request.tenant)
        if found is None:
            parts = call_parts(request.call_id)
            if parts is None or ProgramKey(request.tenant, parts[0]) not in state.table.rows:
                raise NotFoundError("CALL_NOT_FOUND", f"no call {request.call_id!r}", field="call_id")
            return
        row, call = found
        if request.never_started or not call.boot_id:
            self._end(row, call, outcome)
        elif outcome is not Outcome.COMPLETED:
            state.links.send(call.engine_id, CancelCalls((call.call_id,)))
            asyncio.get_running_loop().call_later(ABANDONED_S, self._end_abandoned, call.call_id, outcome)

    def _end_abandoned(self, call_id: CallId, outcome: Outcome) -> None:
        """Runs as a timer: the engine has had its time to report."""
        key = self._state.table.index.calls.get(call_id)
        if key is None or self._state.commits.fenced is not None:
            return
        row = self._state.table.index.rows[key]
        log.warning("no final report of an abandoned call", call=call_id, engine=row.calls[call_id].engine_id)
        self._end(row, row.calls[call_id], outcome)

    def _end(self, row: ProgramRow, call: CallRow, outcome: Outcome) -> None:
        state, now = self._state, self._state.now()
        state.engines.call_ended(call.engine_id, row.root_key, outcome, now.steady_us)
        state.table.end_call(row.key, call.call_id, outcome, now)
        state.settle()
