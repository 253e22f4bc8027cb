"""Admission of calls. Nothing here waits: gateways stand in the path of every request. Ends of calls: call_ends.py."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from agentserving.contract import ticket
from agentserving.contract.budgets import BudgetState
from agentserving.contract.ids import CallId, EngineId, ProgramId, Tenant
from agentserving.contract.rates import Rate
from agentserving.contract.signatures import SigningKey

from agentserving_controlplane.engines.directives import ToolWait
from agentserving_controlplane.engines.engine import Engine
from agentserving_controlplane.engines.load_balancer import Wanted
from agentserving_controlplane.errors import UnavailableError
from agentserving_controlplane.instant import Instant
from agentserving_controlplane.state import LeaderState
from agentserving_controlplane.table import budgets
from agentserving_controlplane.table.admission_plan import AdmissionPlan, AdmissionRequest
from agentserving_controlplane.table.rows import CallRow, ProgramRow
from agentserving_controlplane.table.tries import MAX_FALLBACKS

TICKET_LIFETIME_S = 600


class NamedEngine(NamedTuple):
    """An engine that may serve a call; host:port of its front."""

    engine_id: EngineId
    address: str


class Admission(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """An admitted call: where it runs, and its ticket."""

    call_id: CallId
    attempt: int
    program_id: ProgramId
    engine_id: EngineId
    engine_address: str
    sidecar_address: str
    ticket: str
    epoch: int
    # Engines on which the ticket is good as well, in the order in which to try them.
    fallbacks: tuple[NamedEngine, ...] = ()
    # What is left of the tenant's bounds in time.
    rates: tuple[Rate, ...] = ()
    # Of the call's tree, when little is left of it.
    budget: BudgetState | None = None


class CallOperations:
    """Admits calls and ends them, on the state of a leadership."""

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
        bounds = state.table.bounds.of_tenant(request.tenant)
        state.table.tokens.check(request.tenant, bounds.tokens_per_day, now)
        state.table.rates.check(request.tenant, bounds, now)
        plan = state.table.plan_admission(request)
        if plan.opens or plan.reopens:
            state.check_space()
        key = state.settings.ticket_keys()[0]
        wanted = Wanted(
            program=plan.root,
            prompt_tokens=request.prompt_tokens,
            model=request.model,
            exclude=request.exclude_engine_ids,
            holding=plan.engines,
        )
        engines = self._chosen(wanted, request, now)
        # Nothing below refuses.
        call = self._commit(plan, [each.engine_id for each in engines], now)
        row = state.table.index.rows[plan.key]
        if request.idempotency_key:
            state.keys.add(row, call, now.steady_us)
        state.table.rates.admitted(request.tenant, now)
        state.settle()
        return self._admission(row, call, key, self._left(request.tenant, bounds.tokens_per_day, now))

    def _chosen(self, wanted: Wanted, request: AdmissionRequest, now: Instant) -> list[Engine]:
        """The engines of a call. UnavailableError: a call that its gateway holds then counts as demand."""
        state, demand = self._state, self._state.table.demand
        try:
            found = state.balancer.choose_many(wanted, now.steady_us, 1 + min(request.max_fallbacks, MAX_FALLBACKS))
        except UnavailableError:
            if request.hold_id:
                program = wanted.program if request.program_id else None
                demand.call_held(request.hold_id, program, request.prompt_tokens, now.steady_us)
            raise
        if request.hold_id:
            demand.call_released(request.hold_id)
        return found

    def _left(self, tenant: Tenant, tokens_per_day: int, now: Instant) -> tuple[Rate, ...]:
        table = self._state.table
        rates = table.rates.left(tenant, now)
        return (*rates, table.tokens.left(tenant, tokens_per_day, now)) if tokens_per_day else rates

    def _commit(self, plan: AdmissionPlan, engines: list[EngineId], now: Instant) -> CallRow:
        state = self._state
        if plan.replaces is not None:
            found = state.table.index.call(plan.replaces[1], plan.request.tenant)
            if found is not None:
                replaced = found[1]
                state.engines.call_failed(replaced.engine_id, now.steady_us, replaced.boot_id, replaced.admit_us)
        call = state.table.commit(plan, engines[0], now, engines[1:])
        state.engines.call_admitted(engines[0], call.call_id)
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

    def _admission(
        self, row: ProgramRow, call: CallRow, key: SigningKey | None = None, rates: tuple[Rate, ...] = ()
    ) -> Admission:
        state = self._state
        # A repeated AdmitCall gets the ticket of the first, wherever the call is by now.
        engine = state.engines.reachable(call.engines[0] if call.engines else call.engine_id)
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
                service_class=row.service_class,
                fallbacks=tuple(call.engines[1:]),
                boots=self._boots(engine.engine_id, call),
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
            fallbacks=self._named(call.engines[1:]),
            rates=rates,
            budget=budgets.warning_of(root),
        )

    def _boots(self, engine_id: EngineId, call: CallRow) -> tuple[str, ...]:
        """Of the engines named. A call that an engine has reported retains its boot: no used ticket is signed again."""
        known = self._state.engines.engines
        boots = {each: engine.boot_id for each in (engine_id, *call.engines[1:]) if (engine := known.get(each))}
        if call.boot_id and call.engine_id in boots:
            boots[call.engine_id] = call.boot_id
        return tuple(boots.get(each, "") for each in (engine_id, *call.engines[1:]))

    def _named(self, engine_ids: list[EngineId]) -> tuple[NamedEngine, ...]:
        known = (self._state.engines.engines.get(engine_id) for engine_id in engine_ids)
        return tuple(NamedEngine(each.engine_id, each.address) for each in known if each is not None)
