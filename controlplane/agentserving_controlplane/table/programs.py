"""The life of programs: opened, paused, waiting for a tool, closed, opened again. Pure.

Opening is planned and then committed (`plan_open`, `commit_open`): a plan is a value that changes nothing, so whatever
else must be checked can still refuse the request without a trace. `admission_plan.py` does so for calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agentserving.contract.budgets import UNLIMITED, Budget
from agentserving.contract.ids import ProgramId, ProgramKey, Tenant
from agentserving.contract.service_class import ServiceClass

from agentserving_controlplane.errors import ConflictError, ExistsError, ForbiddenError, InvalidError, NotFoundError
from agentserving_controlplane.instant import Instant
from agentserving_controlplane.table import budgets
from agentserving_controlplane.table.bounds import Bounds
from agentserving_controlplane.table.changes import Changes
from agentserving_controlplane.table.endings import ClosedProgram, Endings, origin_of
from agentserving_controlplane.table.live_demand import LiveDemand
from agentserving_controlplane.table.program_index import ProgramIndex
from agentserving_controlplane.table.rows import NO_PROGRAM, ProgramRow
from agentserving_controlplane.table.service_rights import ServiceRights
from agentserving_controlplane.table.states import Outcome, ProgramState
from agentserving_controlplane.table.times import TimeTotals
from agentserving_controlplane.table.traces import Traces

PROGRAM_ID = re.compile(r"[A-Za-z0-9._:@/-]{1,128}")
MAX_NAME_BYTES, MAX_KEY_BYTES = 128, 128
MAX_DEPTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """A request to open a program; without `program_id` the table chooses one."""

    tenant: Tenant
    program_id: ProgramId = NO_PROGRAM
    name: str = ""
    parent: ProgramId = NO_PROGRAM
    # What the client asks for, and the best class that its key may use; UNSPECIFIED = nothing, and any.
    service_class: ServiceClass = ServiceClass.UNSPECIFIED
    service_class_limit: ServiceClass = ServiceClass.UNSPECIFIED
    idempotency_key: str = ""
    # Identifies the rest of the request; set with the key.
    digest: str = ""
    # Of the whole tree.
    budget: Budget = UNLIMITED
    # By a call that names it, not by OpenProgram.
    claimed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPlan:
    """A program to be opened, or a cancelled one to be opened again (`reopens`)."""

    key: ProgramKey
    name: str = ""
    parent: ProgramId = NO_PROGRAM
    root: ProgramId
    service_class: ServiceClass = ServiceClass.STANDARD
    idempotency_key: str = ""
    digest: str = ""
    reopens: bool = False
    # Counter of generated ids after this plan; 0 when the id was given.
    generated: int = 0
    # As it was asked for; a default is not in it.
    budget: Budget = UNLIMITED
    claimed: bool = False


@dataclass(slots=True)
class Totals:
    """Counts since this process began to lead."""

    programs_completed: int = 0
    calls_completed: int = 0
    # Trees that have spent their budgets; one may do so again, after an addition.
    budgets_spent: int = 0
    reports_ignored: int = 0
    # Of calls that were placed on other engines, and of more unknown calls than may be adopted.
    reports_refused: int = 0
    calls_adopted: int = 0
    calls_expired: int = 0
    outcomes: dict[Outcome, int] = field(default_factory=dict)
    times: TimeTotals = field(default_factory=TimeTotals)


def check_key(key: str) -> None:
    """InvalidError for an idempotency key that is too long to store."""
    if len(key.encode()) > MAX_KEY_BYTES:
        raise InvalidError("KEY_TOO_LONG", f"idempotency_key: at most {MAX_KEY_BYTES} bytes", field="idempotency_key")


def key_reused(key: str) -> ExistsError:
    """The refusal of an idempotency key that came with another request."""
    return ExistsError(
        "IDEMPOTENCY_KEY_REUSED",
        f"idempotency_key: {key!r} was used for another request: choose a new key",
        field="idempotency_key",
    )


def check_not_cancelled(row: ProgramRow, field_name: str = "program_id") -> None:
    """ForbiddenError for a cancelled program: it stays cancelled until OpenProgram opens it again."""
    if row.cancelled:
        raise ForbiddenError(
            "PROGRAM_CANCELLED",
            f"program {row.program_id!r} has been cancelled: open it again, or use another id",
            field=field_name,
        )


def check_open(row: ProgramRow) -> None:
    """ConflictError for a program that has ended, ForbiddenError for one that was cancelled."""
    check_not_cancelled(row)
    if row.state is ProgramState.CLOSED:
        raise ConflictError("PROGRAM_CLOSED", f"program {row.program_id!r} is closed: open another", field="program_id")


class Programs:
    """Opens, pauses and closes the programs of an index, and records which rows changed."""

    def __init__(self, epoch: int, index: ProgramIndex, changes: Changes, totals: Totals, bounds: Bounds) -> None:
        self._epoch, self._index, self._changes, self._totals = epoch, index, changes, totals
        self._bounds = bounds
        self.service = ServiceRights()
        self._generated = 0
        # Limits of a root for what it is not given; the leader sets it.
        self.default_budget: Callable[[Tenant], Budget] = lambda tenant: UNLIMITED
        self._ended: list[ProgramRow] = []
        self.demand = LiveDemand()
        # Receives closed programs, when set.
        self.endings: Endings | None = None
        self.traces = Traces()

    # -- opening -------------------------------------------------------------------------------------------------

    def plan_open(
        self, request: OpenRequest, opening: Mapping[ProgramKey, OpenPlan] | None = None
    ) -> OpenPlan | ProgramRow:
        """What opening a program would do, or the row that the same request has already opened. Raises refusals.

        `opening`: plans that will be committed before this one.
        """
        check_key(request.idempotency_key)
        before = self._index.opened_with(request.tenant, request.idempotency_key)
        if before is not None:
            if before.request == request.digest:
                return before
            raise key_reused(request.idempotency_key)
        opening = opening or {}
        generated, program_id = (0, request.program_id) if request.program_id else self._generate_id(request, opening)
        if PROGRAM_ID.fullmatch(program_id) is None:
            raise InvalidError("BAD_PROGRAM_ID", "program_id: 1 to 128 of A-Z a-z 0-9 . _ : @ / -", field="program_id")
        if len(request.name.encode()) > MAX_NAME_BYTES:
            raise InvalidError("NAME_TOO_LONG", f"name: at most {MAX_NAME_BYTES} bytes", field="name")
        budgets.check_amounts(request.budget, "budget")
        if request.budget and request.parent:
            raise InvalidError(
                "BUDGET_OF_SUB_AGENT",
                "budget: a sub-agent spends its root's: leave the budget out, or open the program without a parent",
                field="budget",
            )
        key = ProgramKey(request.tenant, program_id)
        known = self._index.rows.get(key)
        if known is not None and not known.cancelled:
            raise ExistsError("PROGRAM_EXISTS", f"program {program_id!r} exists: choose another id", field="program_id")
        self._bounds.check_programs(request.tenant, 1 + len(opening))
        service = self.service.granted(request.tenant, request.service_class, request.service_class_limit)
        root = known.root if known is not None else self._root_of_new(key, request.parent, opening)
        return OpenPlan(
            key=key,
            name=request.name,
            parent=request.parent,
            root=root,
            service_class=self._inherited(ProgramKey(request.tenant, root), opening) or service,
            idempotency_key=request.idempotency_key,
            digest=request.digest,
            reopens=known is not None,
            generated=generated,
            budget=request.budget,
            claimed=request.claimed,
        )

    def commit_open(self, plan: OpenPlan, now: Instant) -> ProgramRow:
        """Opens the program of a plan that was made since the last change."""
        if plan.reopens:
            return self._commit_reopen(plan, now)
        row = ProgramRow(
            program_id=plan.key.program_id,
            tenant=plan.key.tenant,
            open_us=now.unix_us,
            name=plan.name,
            parent=plan.parent,
            root=plan.root,
            service_class=plan.service_class,
            idempotency_key=plan.idempotency_key,
            request=plan.digest,
            last_arrival_us=now.unix_us,
            claimed=plan.claimed,
        )
        self._generated = max(self._generated, plan.generated)
        self._give_budget(row, plan.budget)
        self._index.insert(row, now.steady_us)
        self.touch(row, with_root=True)
        return row

    def _give_budget(self, row: ProgramRow, asked: Budget) -> None:
        if row.root == row.program_id:
            budgets.give(row, asked.or_else(self.default_budget(row.tenant)))

    def _commit_reopen(self, plan: OpenPlan, now: Instant) -> ProgramRow:
        row = self._index.rows[plan.key]
        row.claimed = plan.claimed
        if plan.idempotency_key:
            self._index.unname_opening(row)
            row.idempotency_key, row.request = plan.idempotency_key, plan.digest
            self._index.name_opening(row)
        self._give_budget(row, plan.budget)
        self.reopen(row, now)
        return row

    def open(self, request: OpenRequest, now: Instant) -> ProgramRow:
        """Plans and commits in one step: the row that this request opens, or has opened before. Raises refusals."""
        plan = self.plan_open(request)
        if isinstance(plan, ProgramRow):
            return plan
        self._changes.begin()
        return self.commit_open(plan, now)

    def adopt(self, row: ProgramRow, now: Instant) -> None:
        """Inserts a program that is known from an engine's report only."""
        self._give_budget(row, UNLIMITED)
        self._index.insert(row, now.steady_us)
        self.touch(row, with_root=True)

    def _generate_id(self, request: OpenRequest, opening: Mapping[ProgramKey, OpenPlan]) -> tuple[int, ProgramId]:
        """The next free generated id, with its counter. No id is generated twice."""
        counter = self._generated
        while True:
            counter += 1
            program_id = ProgramId(f"p-{self._epoch:x}-{counter:x}")
            key = ProgramKey(request.tenant, program_id)
            if key not in self._index.rows and key not in opening:
                return counter, program_id

    def _root_of_new(self, key: ProgramKey, parent: ProgramId, opening: Mapping[ProgramKey, OpenPlan]) -> ProgramId:
        """The root of a new program. Raises when `parent` cannot have a child."""
        if not parent:
            return key.program_id
        if parent == key.program_id:
            raise InvalidError(
                "CYCLIC_PARENT", f"program {parent!r} cannot be its own parent", field="parent_program_id"
            )
        above = ProgramKey(key.tenant, parent)
        if above in opening:
            return opening[above].root
        row = self._index.rows.get(above)
        if row is None:
            raise NotFoundError("PARENT_NOT_FOUND", f"no parent program {parent!r}", field="parent_program_id")
        check_not_cancelled(row, "parent_program_id")
        depth = 1
        step: ProgramRow | None = row
        while step is not None and step.parent and depth <= MAX_DEPTH:
            step = self._index.rows.get(ProgramKey(key.tenant, step.parent))
            depth += 1
        if depth > MAX_DEPTH:
            raise InvalidError("TOO_DEEP", f"programs nest at most {MAX_DEPTH} deep", field="parent_program_id")
        return row.root

    def _inherited(self, root: ProgramKey, opening: Mapping[ProgramKey, OpenPlan]) -> ServiceClass:
        """The class of an existing or coming root; UNSPECIFIED when the new program is the root."""
        known = opening.get(root) or self._index.rows.get(root)
        return known.service_class if known is not None else ServiceClass.UNSPECIFIED

    # -- changing ------------------------------------------------------------------------------------------------

    def touch(self, row: ProgramRow, *, with_root: bool = False) -> None:
        """Records that a row changed; `with_root`: it and its root's row must land together."""
        self._index.note_budget(self._index.root_of(row))
        root = row.root_key if with_root and row.root_key in self._index.rows else None
        self._changes.row(row.key, root)

    def close(self, row: ProgramRow, outcome: Outcome, now: Instant) -> None:
        """Ends a program: no new calls; those in flight finish and are charged. The end of a root ends its pause."""
        if row.state is ProgramState.CLOSED:
            return
        row.state, row.outcome, row.close_us = ProgramState.CLOSED, outcome, now.unix_us
        row.tool, row.tool_expected_us = "", 0
        self.traces.tool_wait_ended(row.key, now.unix_us)
        self._index.active(row, now.steady_us)
        self._index.note_end(row)
        self._totals.programs_completed += 1
        self._totals.times.distributions.program_ended(row)
        if row.root == row.program_id:
            self._ended.append(row)
            self.demand.program_ended(row.key, now.steady_us, is_whole=outcome is Outcome.COMPLETED)
        if row.paused:
            self.pause(row, False)
        self.touch(row)
        if self.endings is not None:
            origin = origin_of(row, self._index.root_of(row))
            self.endings.note(row.tenant, ClosedProgram(origin, outcome, now.unix_us, len(row.calls)))

    def close_tree(self, row: ProgramRow, outcome: Outcome, now: Instant) -> None:
        """Closes a program, and the sub-agents that only calls have opened; those with calls, when the last one ends.

        What a client has opened below it stays open until that client closes it. Its sub-agents do so, too.
        """
        self.close(row, outcome, now)
        ended = {row.program_id}
        for below in list(self._index.tree(row)):
            is_open = below.state is not ProgramState.CLOSED
            if below.parent not in ended or (is_open and not below.claimed):
                continue
            ended.add(below.program_id)
            if is_open and below.calls:
                below.closing = True
                self.touch(below)
            else:
                self.close(below, outcome, now)

    def take_ended(self) -> list[ProgramRow]:
        """Root programs closed since the last call of this method."""
        ended, self._ended = self._ended, []
        return ended

    def cancel(self, row: ProgramRow, now: Instant) -> None:
        """Closes a program as CANCELLED. One that has ended already keeps its outcome, but takes no calls either."""
        if not row.cancel_requested:
            row.cancel_requested = True
            self.touch(row)
        if row.state is ProgramState.CLOSED:
            self._index.active(row, now.steady_us)
            self._index.closed.add(row.key, cancelled=True)
        else:
            self.close(row, Outcome.CANCELLED, now)

    def reopen(self, row: ProgramRow, now: Instant) -> None:
        """Continues a closed program under the same id and account."""
        if row.state is not ProgramState.CLOSED:
            return
        row.state, row.outcome, row.close_us = ProgramState.ACTIVE, Outcome.NONE, 0
        row.closing = row.cancel_requested = False
        self._index.note_reopening(row)
        self._index.active(row, now.steady_us)
        self.touch(row)

    def begin_tool_wait(self, row: ProgramRow, tool: str, expected_us: int, now: Instant) -> None:
        """The program waits for a tool; ConflictError when it is closed."""
        check_open(row)
        self._index.active(row, now.steady_us)
        if (row.state, row.tool, row.tool_expected_us) != (ProgramState.TOOL_WAIT, tool, expected_us):
            if row.state is not ProgramState.TOOL_WAIT or row.tool != tool:
                self.traces.tool_wait_began(row.key, tool, now.unix_us)
            row.state, row.tool, row.tool_expected_us = ProgramState.TOOL_WAIT, tool, expected_us
            self.touch(row)

    def end_tool_wait(self, row: ProgramRow, now: Instant) -> bool:
        """False when the program was not waiting."""
        if row.state is not ProgramState.TOOL_WAIT:
            return False
        row.state, row.tool, row.tool_expected_us = ProgramState.ACTIVE, "", 0
        self.traces.tool_wait_ended(row.key, now.unix_us)
        self._index.active(row, now.steady_us)
        self.touch(row)
        return True

    def pause(self, row: ProgramRow, paused: bool) -> ProgramRow:
        """Pauses or resumes the tree of a program; returns its root."""
        root = self._index.root_of(row)
        if paused:
            check_open(row)
            check_open(root)
            if not root.paused:
                self._bounds.check_pause(root.tenant)
        if root.paused != paused:
            root.paused = paused
            # A paused program does not expire.
            for program in () if paused else self._index.tree(root):
                self._index.deadlines.mark(program.key)
            self._index.note_pause(root)
            self.touch(root)
        return root

    def resume(self, row: ProgramRow, addition: budgets.Addition) -> ProgramRow:
        """Ends what pauses the tree of a program; returns its root. ConflictError while its budget is spent."""
        root = self._index.root_of(row)
        if budgets.resume(root, addition):
            # It may be idle for less long than before.
            for program in self._index.tree(root):
                self._index.deadlines.mark(program.key)
            self.touch(root)
        return self.pause(row, False)
