"""Admission of a call, planned: every decision and every refusal, on values, before anything changes. Pure.

`AdmissionPlanner.plan` reads the table and raises the refusal or returns an `AdmissionPlan`. The caller chooses the
engine, which may refuse too, and `ProcessTable.commit` then applies the plan in one piece. A refused call therefore
leaves no program, parent, reopening or ended attempt behind.
"""

from __future__ import annotations

import msgspec
from agentserving.contract.budgets import UNLIMITED, Budget
from agentserving.contract.ids import CallId, EngineId, ProgramId, ProgramKey, Tenant
from agentserving.contract.service_class import ServiceClass

from agentserving_controlplane.errors import DomainError, ForbiddenError, InvalidError, NotFoundError, OverloadedError
from agentserving_controlplane.table import budgets
from agentserving_controlplane.table.bounds import Bounds
from agentserving_controlplane.table.late_charges import LateCharges
from agentserving_controlplane.table.program_index import ProgramIndex
from agentserving_controlplane.table.programs import (
    MAX_NAME_BYTES,
    OpenPlan,
    OpenRequest,
    Programs,
    check_not_cancelled,
    check_open,
)
from agentserving_controlplane.table.rows import (
    MAX_THREAD_BYTES,
    NO_CALL,
    NO_PROGRAM,
    CallRow,
    ProgramRow,
    call_parts,
    cut,
)
from agentserving_controlplane.table.states import Outcome, ProgramState

MAX_PARENTS = 64
# Bounds what one program can make the control plane and the engines do at a time: cancelling it reaches every call.
MAX_CALLS_IN_FLIGHT = 16_384


class AdmissionRequest(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """AdmitCall. Empty strings mean "not given"; `implicit` marks ids that were taken from headers as a claim."""

    tenant: Tenant
    program_id: ProgramId = NO_PROGRAM
    thread_id: str = ""
    parent_call_ids: tuple[CallId, ...] = ()
    implicit: bool = False
    name: str = ""
    parent_program_id: ProgramId = NO_PROGRAM
    prompt_tokens: int = 0
    model: str = ""
    retry_of_call_id: CallId = NO_CALL
    exclude_engine_ids: frozenset[EngineId] = frozenset()
    final: bool = False
    max_fallbacks: int = 0
    # Time at the gateway so far, and the request's W3C traceparent: for those who look at the call later.
    gateway_us: int = 0
    trace_parent: str = ""
    # Of a call that its gateway holds until there is an engine; 0 = it does not.
    hold_id: int = 0
    # Time in which its gateway has held it because its tree's budget was spent; part of gateway_us.
    held_us: int = 0
    # Of the call's tree, if that has none yet.
    budget: Budget = UNLIMITED
    # What the client asks for, and the best class that its key may use; UNSPECIFIED = nothing, and any.
    service_class: ServiceClass = ServiceClass.UNSPECIFIED
    service_class_limit: ServiceClass = ServiceClass.UNSPECIFIED
    idempotency_key: str = ""
    # Identifies the rest of the request; set with the key.
    digest: str = ""


class AdmissionPlan(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What admitting a call changes, the engine aside."""

    request: AdmissionRequest
    key: ProgramKey
    root: ProgramKey
    # Programs to open first, parents before children.
    opens: tuple[OpenPlan, ...] = ()
    reopens: bool = False
    thread_id: str
    parents: tuple[CallId, ...]
    attempt: int = 1
    # The earlier attempt that this call replaces, and its program.
    replaces: tuple[ProgramKey, CallId] | None = None
    # The program closes when its last call ends.
    closing: bool
    # The program waited for a tool.
    ends_tool_wait: bool = False
    # Engines that ran earlier calls of the program, most recent first.
    engines: tuple[EngineId, ...] = ()


class _Target(msgspec.Struct, frozen=True, gc=False):
    """The program of a call: its row, or the plans that open it."""

    row: ProgramRow | None
    opens: tuple[OpenPlan, ...] = ()
    reopens: bool = False


def knows_call(row: ProgramRow, call_id: str) -> bool:
    """True for the id of a call that this program may have had: numbered before its newest one."""
    parts = call_parts(call_id)
    return parts is not None and parts[0] == row.program_id and parts[2] < row.admitted.get(parts[1], 0)


class AdmissionPlanner:
    """Plans admissions to the programs of an index."""

    def __init__(self, index: ProgramIndex, programs: Programs, late: LateCharges, bounds: Bounds) -> None:
        self._index, self._programs, self._late, self._bounds = index, programs, late, bounds

    def plan(self, request: AdmissionRequest) -> AdmissionPlan:
        """Decides an admission up to the choice of the engine. Raises DomainError; changes nothing."""
        for name in ("prompt_tokens", "gateway_us", "held_us"):
            if getattr(request, name) < 0:
                raise InvalidError("NEGATIVE", f"{name} must not be negative", field=name)
        # A program keeps the class that it was opened with; asking for another is refused where it is not permitted.
        self._programs.service.granted(request.tenant, request.service_class, request.service_class_limit)
        earlier = self._index.call(request.retry_of_call_id, request.tenant) if request.retry_of_call_id else None
        target = self._target(request, earlier[0] if earlier else None)
        self._check_budget(request, target, earlier)
        if target.reopens:
            self._bounds.check_programs(request.tenant)
        self._bounds.check_call(request.tenant, replaced=int(earlier is not None))
        row = target.row
        thread_id, parents = self._thread_and_parents(request, row)
        # A call that its sender has ended is in flight as long as its engine goes on.
        in_flight = len(row.calls) + self._late.count(row.key) if row is not None else 0
        if in_flight - (earlier is not None and earlier[0] is row) >= MAX_CALLS_IN_FLIGHT:
            raise OverloadedError(
                "TOO_MANY_CALLS", f"a program has at most {MAX_CALLS_IN_FLIGHT} calls in flight", retry_after_s=1.0
            )
        is_retry = row is not None and bool(request.retry_of_call_id) and knows_call(row, request.retry_of_call_id)
        return AdmissionPlan(
            request=request,
            key=row.key if row is not None else target.opens[-1].key,
            root=row.root_key if row is not None else ProgramKey(request.tenant, target.opens[-1].root),
            opens=target.opens,
            reopens=target.reopens,
            thread_id=thread_id,
            parents=parents,
            # When the earlier attempt has ended, its row is gone: this one is the second at least.
            attempt=earlier[1].attempt + 1 if earlier else 2 if is_retry else 1,
            replaces=(earlier[0].key, earlier[1].call_id) if earlier else None,
            closing=request.final or not request.program_id or (row is not None and row.closing and is_retry),
            ends_tool_wait=row is not None and row.state is ProgramState.TOOL_WAIT,
            engines=tuple(row.engines) if row is not None else (),
        )

    def _check_budget(
        self, request: AdmissionRequest, target: _Target, earlier: tuple[ProgramRow, CallRow] | None
    ) -> None:
        """A tree with a spent budget has no more calls; an attempt that this one replaces is not in flight."""
        if request.budget is not UNLIMITED:
            budgets.check_amounts(request.budget, "budget")
        root = self._index.root_of(target.row) if target.row is not None else self._root_above(request, target)
        if root is not None and (root.budget is not None or request.budget is not UNLIMITED):
            replaced = earlier is not None and earlier[0].root_key == root.key
            in_flight = self._index.calls_of_tree(root.key) - replaced
            budgets.check_call(root, budgets.limit_of(root) or request.budget, in_flight)

    def _root_above(self, request: AdmissionRequest, target: _Target) -> ProgramRow | None:
        """The root of a program that this call opens; None when it opens that as well."""
        return self._index.rows.get(ProgramKey(request.tenant, target.opens[-1].root))

    # -- the program ---------------------------------------------------------------------------------------------

    def _target(self, request: AdmissionRequest, retried: ProgramRow | None) -> _Target:
        row = self._known_row(request, retried)
        if row is None:
            if request.program_id and not request.implicit:
                raise NotFoundError(
                    "PROGRAM_NOT_FOUND", f"no program {request.program_id!r}: open it first", field="program_id"
                )
            return _Target(None, self._opens(request))
        check_not_cancelled(row)
        if row.state is not ProgramState.CLOSED:
            return _Target(row)
        # An id that is used again after its end continues its program. A retry of the call that ended the program does
        # so too: the call it repeats was admitted before the end.
        if request.implicit or self._repeats_final_call(request, row):
            return _Target(row, reopens=True)
        check_open(row)
        raise AssertionError("a closed program is refused")

    def _known_row(self, request: AdmissionRequest, retried: ProgramRow | None) -> ProgramRow | None:
        if request.program_id:
            return self._index.rows.get(ProgramKey(request.tenant, request.program_id))
        if retried is not None or not request.retry_of_call_id:
            return retried
        # A call without a program id is retried, and its first attempt has ended: its program is known from the id.
        parts = call_parts(request.retry_of_call_id)
        row = self._index.rows.get(ProgramKey(request.tenant, parts[0])) if parts else None
        return row if row is not None and row.closing and knows_call(row, request.retry_of_call_id) else None

    @staticmethod
    def _repeats_final_call(request: AdmissionRequest, row: ProgramRow) -> bool:
        return row.closing and row.outcome is Outcome.COMPLETED and knows_call(row, request.retry_of_call_id)

    def _opens(self, request: AdmissionRequest) -> tuple[OpenPlan, ...]:
        """Plans that open the program of a call, and its parent when only the claim names it."""
        parent = request.parent_program_id
        if not request.implicit:
            return (self._open(request, request.name, parent),)
        name = cut(request.name, MAX_NAME_BYTES)
        if parent:
            try:
                return self._opens_below(request, name, parent)
            except ForbiddenError:
                raise
            except DomainError:
                # A claim is never an error: a parent that cannot be one is left out. If the program itself is what
                # is wrong, opening it without a parent says so.
                pass
        return (self._open(request, name),)

    def _opens_below(self, request: AdmissionRequest, name: str, parent: ProgramId) -> tuple[OpenPlan, ...]:
        above = ProgramKey(request.tenant, parent)
        if above in self._index.rows or parent == request.program_id:
            return (self._open(request, name, parent),)
        opening = self._programs.plan_open(
            OpenRequest(
                tenant=request.tenant,
                program_id=parent,
                budget=request.budget,
                service_class=request.service_class,
                service_class_limit=request.service_class_limit,
                claimed=True,
            )
        )
        assert isinstance(opening, OpenPlan), "only a request with an idempotency key finds a row"
        return (opening, self._open(request, name, parent, opening))

    def _open(
        self, request: AdmissionRequest, name: str, parent: ProgramId = NO_PROGRAM, above: OpenPlan | None = None
    ) -> OpenPlan:
        # A call's budget is that of its tree, whichever program of the tree makes it.
        budget = UNLIMITED if parent else request.budget
        asked = OpenRequest(
            tenant=request.tenant,
            program_id=request.program_id,
            name=name,
            parent=parent,
            budget=budget,
            service_class=request.service_class,
            service_class_limit=request.service_class_limit,
            claimed=True,
        )
        plan = self._programs.plan_open(asked, {above.key: above} if above is not None else None)
        assert isinstance(plan, OpenPlan), "only a request with an idempotency key finds a row"
        return plan

    # -- thread and parents --------------------------------------------------------------------------------------

    @staticmethod
    def _thread_and_parents(request: AdmissionRequest, row: ProgramRow | None) -> tuple[str, tuple[CallId, ...]]:
        """Checked; or, when they are a claim, cut to what is allowed and without unknown parents."""
        thread_id, parents = request.thread_id, request.parent_call_ids
        known = tuple(parent for parent in parents if row is not None and knows_call(row, parent))
        if request.implicit:
            return cut(thread_id, MAX_THREAD_BYTES), known[-MAX_PARENTS:]
        if len(thread_id.encode()) > MAX_THREAD_BYTES:
            raise InvalidError("BAD_THREAD_ID", f"thread_id: at most {MAX_THREAD_BYTES} bytes", field="thread_id")
        if len(parents) > MAX_PARENTS:
            raise InvalidError("TOO_MANY_PARENTS", f"at most {MAX_PARENTS} parents", field="parent_call_ids")
        for parent in parents:
            if parent not in known:
                raise NotFoundError(
                    "PARENT_CALL_NOT_FOUND", f"{parent!r} is no earlier call of this program", field="parent_call_ids"
                )
        return thread_id, parents
