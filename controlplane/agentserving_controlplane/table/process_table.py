"""The process table: one row per program, and the account that decides whose call runs next.

Pure: time and epoch are arguments. The table owns its parts: the index (every way to look rows up), the programs (their
life), the changes (what must be stored). This module is about calls: admitted, reported by engines, ended. Reports are
absolute, so a repeated, late or reordered one changes nothing (rows.py says how a counted call is recognised). Call ids
are `<program>.<epoch>.<number>`. Numbers count all calls of this process, so no two tenants share an id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from agentserving.contract.accounting import account_at_admit, charge_call
from agentserving.contract.budgets import UNLIMITED
from agentserving.contract.ids import CallId, EngineId, ProgramId, ProgramKey, Tenant
from agentserving.contract.policy import Accounting

from agentserving_controlplane.instant import Instant
from agentserving_controlplane.table import budgets, tries
from agentserving_controlplane.table.admission_plan import AdmissionPlan, AdmissionPlanner, AdmissionRequest
from agentserving_controlplane.table.bounds import DEFAULT_CAPACITY, Bounds, Capacity
from agentserving_controlplane.table.call_chunks import ROW
from agentserving_controlplane.table.changes import Changes, Item
from agentserving_controlplane.table.endings import EndedCall, origin_of
from agentserving_controlplane.table.expiring_rows import ExpiringRows
from agentserving_controlplane.table.late_charges import LateCharges
from agentserving_controlplane.table.numbering import count_adopted, is_counted
from agentserving_controlplane.table.program_index import ProgramIndex
from agentserving_controlplane.table.programs import PROGRAM_ID, Programs, Totals
from agentserving_controlplane.table.reports import MAX_COUNTER, CallReport, raise_counters
from agentserving_controlplane.table.rows import (
    MAX_ENGINES_KEPT,
    MAX_MISSING_KEPT,
    MAX_SUM,
    MAX_THREAD_BYTES,
    NO_PROGRAM,
    CallRow,
    ProgramRow,
    call_parts,
    cut,
    used_thread,
)
from agentserving_controlplane.table.states import Outcome, ProgramState
from agentserving_controlplane.table.stored_items import StoredItems, late_place, store_key
from agentserving_controlplane.table.tenant_rates import TenantRates
from agentserving_controlplane.table.times import call_admitted, call_charged
from agentserving_controlplane.table.token_use import TokenUse
from agentserving_controlplane.table.traces import Finished


class ProcessTable:
    """All programs of all tenants, and their calls in flight."""

    def __init__(
        self,
        epoch: int,
        accounting: Accounting = Accounting.CRITICAL_PATH,
        capacity: Capacity = DEFAULT_CAPACITY,
    ) -> None:
        self.epoch, self.accounting = epoch, accounting
        self.totals, self.index, self.late, self.tokens = Totals(), ProgramIndex(), LateCharges(), TokenUse()
        self.rates = TenantRates()
        self._stored = StoredItems(self.index, self.late)
        self._changes = Changes(self._stored.encode)
        self.bounds = Bounds(self.index, capacity, self.late.of_tenant)
        self.programs = Programs(epoch, self.index, self._changes, self.totals, self.bounds)
        self.demand = self.programs.demand
        self._planner = AdmissionPlanner(self.index, self.programs, self.late, self.bounds)
        self.expiring = ExpiringRows(self.index, self.programs, self.late, self._changes)
        self._next_number = 0

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> Mapping[ProgramKey, ProgramRow]:
        """All rows; changed only through the table."""
        return self.index.rows

    @property
    def open_calls(self) -> int:
        """Number of calls in flight."""
        return self.index.open_calls

    # -- the store -----------------------------------------------------------------------------------------------

    def restore(
        self, rows: Iterable[ProgramRow], chunks: Mapping[ProgramKey, Mapping[int, list[CallRow]]], now: Instant
    ) -> None:
        """Adds rows that the store holds to a table that serves nothing yet. Ages count from now.

        A row whose calls outgrow it (older versions stored up to 1,024 in it) is marked as changed, so that its calls
        are stored in chunks.
        """
        for row in rows:
            stored, row.calls = row.calls, {}
            self.index.insert(row, now.steady_us)
            for number, calls in chunks.get(row.key, {}).items():
                for call in calls:
                    self.index.restore_call(row, number, call, now.steady_us)
                    self._began(row, call, call.prompt_tokens, now)
            for call in stored.values():
                place = self.index.add_call(row, call, now.steady_us)
                self._began(row, call, call.prompt_tokens, now)
                if place != ROW:
                    self._changes.call(row.key, place)

    def take_changes(self) -> list[list[Item]]:
        """Changed items since the last time, in groups that must each land in one transaction, and in this order."""
        return self._changes.take()

    store_key = staticmethod(store_key)

    def encode(self, item: Item) -> bytes | None:
        """Value of an item for the store; None deletes it."""
        return self._stored.encode(item)

    # -- admission -----------------------------------------------------------------------------------------------

    def plan_admission(self, request: AdmissionRequest) -> AdmissionPlan:
        """Everything about an admission but the engine. Raises DomainError; changes nothing."""
        return self._planner.plan(request)

    def commit(
        self, plan: AdmissionPlan, engine_id: EngineId, now: Instant, fallbacks: Sequence[EngineId] = ()
    ) -> CallRow:
        """Applies a plan made since the last change: opens what it opens, admits the call, ends the attempt before."""
        self._changes.begin()
        for opening in plan.opens:
            self.programs.commit_open(opening, now)
        row = self.index.rows[plan.key]
        if plan.reopens:
            self.programs.reopen(row, now)
        call = self._admit(row, plan, (engine_id, *fallbacks), now)
        if plan.request.budget is not UNLIMITED and budgets.give(self.index.root_of(row), plan.request.budget):
            self.programs.touch(row, with_root=True)
        row.closing |= plan.closing
        # Last: a closing program must not lose its last call before it has the new one.
        if plan.replaces is not None:
            self._end_early(*plan.replaces, Outcome.FAILED, now)
        return call

    def _admit(self, row: ProgramRow, plan: AdmissionPlan, engines: Sequence[EngineId], now: Instant) -> CallRow:
        engine_id = engines[0]
        number, self._next_number = self._next_number, self._next_number + 1
        row.admitted[self.epoch] = number + 1
        call = CallRow(
            call_id=CallId(f"{row.program_id}.{self.epoch}.{number}"),
            attempt=plan.attempt,
            thread_id=plan.thread_id,
            engine_id=engine_id,
            attained_service_us=account_at_admit(self.accounting, self.index.root_of(row).attained_service_us),
            admit_us=now.unix_us,
            parents=list(plan.parents),
            idempotency_key=plan.request.idempotency_key,
            request=plan.request.digest,
            engines=list(engines) if len(engines) > 1 else [],
            gateway_us=min(max(0, plan.request.gateway_us - plan.request.held_us), MAX_COUNTER),
            held_us=min(plan.request.held_us, MAX_COUNTER),
            trace_parent=plan.request.trace_parent,
            follows=row.calls_completed > 0,
            elsewhere=bool(row.engines) and engine_id not in row.engines,
        )
        if not plan.reopens:
            call_admitted(row, self.totals.times, now.unix_us)
        self._changes.call(row.key, self.index.add_call(row, call, now.steady_us))
        self._began(row, call, plan.request.prompt_tokens, now)
        used_thread(row, plan.thread_id).calls += 1
        row.last_arrival_us = now.unix_us
        self.index.active(row, now.steady_us)
        self.programs.end_tool_wait(row, now)
        if engine_id in row.engines:
            row.engines.remove(engine_id)
        row.engines.insert(0, engine_id)
        del row.engines[MAX_ENGINES_KEPT:]
        return call

    def _began(self, row: ProgramRow, call: CallRow, tokens: int, now: Instant) -> None:
        name = self.index.root_of(row).name
        self.demand.call_began(row.root_key, name, call.call_id, call.engine_id, tokens, now.steady_us)

    # -- reports -------------------------------------------------------------------------------------------------

    def report(self, report: CallReport, now: Instant, *, may_adopt: bool = True) -> ProgramRow | None:
        """Applies an engine's report; returns the row when it changed something. Unknown calls need `may_adopt`."""
        self._changes.begin()
        if report.is_negative:
            self.totals.reports_ignored += 1
            return None
        row = self.index.rows.get(report.key)
        call = row.calls.get(report.call_id) if row is not None else None
        if row is not None and call is None and self._charge_late(row, report, now):
            return row
        if row is None or call is None:
            adopted = self._adopt(row, report, now) if may_adopt else None
            if adopted is None:
                self.totals.reports_refused += not may_adopt
                self.totals.reports_ignored += may_adopt
                return None
            row, call = adopted
        if report.engine_id not in tries.named(call):
            self.totals.reports_refused += 1
            return None
        if report.attempt < call.attempt or tries.is_stale(call, report):
            return None
        if call.engines and report.engine_id != call.engine_id:
            tries.begin(call, report.engine_id)
        self.index.move_call(row, call, report.engine_id, report.running)
        raise_counters(call, report)
        self.index.heard(call, now.steady_us)
        self._changes.progress(row.key, self.index.place_of(row, call))
        if report.outcome and tries.ends(call, report, program_cancelled=row.cancelled):
            self._charge_and_end(row, call, report.outcome, now)
        return row

    def _charge_late(self, row: ProgramRow, report: CallReport, now: Instant) -> bool:
        """True when the report adds to a call of the program that has been charged already, or ends one."""
        number = self.late.charge(row, self.index.root_of(row), report, self.accounting, now)
        if number is None:
            return False
        self.programs.touch(row, with_root=True)
        self._changes.call(row.key, late_place(number))
        self.index.deadlines.mark(row.key)
        return True

    def _adopt(self, row: ProgramRow | None, report: CallReport, now: Instant) -> tuple[ProgramRow, CallRow] | None:
        """Takes in a call that the table does not know. None when it has been counted, or cannot be a call of ours."""
        parts = call_parts(report.call_id)
        if parts is None or parts[0] != report.program_id:
            return None
        _, epoch, number = parts
        is_missing = row is not None and report.call_id in row.missing
        if not is_missing and (epoch >= self.epoch or (row is not None and is_counted(row, epoch, number))):
            return None
        row = row if row is not None else self._adopt_program(report, now)
        if row is None:
            return None
        if is_missing:
            row.missing.remove(report.call_id)
        else:
            count_adopted(row, epoch, number)
        call = CallRow(
            call_id=report.call_id,
            attempt=report.attempt,
            thread_id=cut(report.thread_id, MAX_THREAD_BYTES),
            engine_id=report.engine_id,
            attained_service_us=min(report.attained_service_us, MAX_COUNTER),
            admit_us=now.unix_us,
        )
        tries.adopt(call, report)
        self._changes.call(row.key, self.index.add_call(row, call, now.steady_us))
        self._began(row, call, call.prompt_tokens, now)
        used_thread(row, call.thread_id).calls += 1
        self.totals.calls_adopted += 1
        return row, call

    def _adopt_program(self, report: CallReport, now: Instant) -> ProgramRow | None:
        root = report.root or report.program_id
        if not (PROGRAM_ID.fullmatch(report.program_id) and PROGRAM_ID.fullmatch(root)):
            return None
        above = self.index.rows.get(ProgramKey(report.tenant, root))
        if above is None:
            above = self._adopt_row(report, root, NO_PROGRAM, now)
        return above if root == report.program_id else self._adopt_row(report, report.program_id, root, now)

    def _adopt_row(self, report: CallReport, program_id: ProgramId, parent: ProgramId, now: Instant) -> ProgramRow:
        row = ProgramRow(
            program_id=program_id,
            tenant=report.tenant,
            open_us=now.unix_us,
            parent=parent,
            root=parent or program_id,
            last_arrival_us=now.unix_us,
        )
        self.programs.adopt(row, now)
        return row

    # -- ends ----------------------------------------------------------------------------------------------------

    def end_call(self, key: ProgramKey, call_id: CallId, outcome: Outcome, now: Instant) -> CallRow | None:
        """Ends a call without its engine's final report; returns the call, or None when it is not in flight.

        A call that was reported is charged with its last report, and what comes later is added. One that was never
        reported is taken back: if an engine reports it after all, it is counted as if its admission had been lost.
        """
        self._changes.begin()
        return self._end_early(key, call_id, outcome, now)

    def _end_early(self, key: ProgramKey, call_id: CallId, outcome: Outcome, now: Instant) -> CallRow | None:
        row = self.index.rows.get(key)
        call = row.calls.get(call_id) if row is not None else None
        if row is None or call is None:
            return None
        if call.boot_id:
            self._charge_and_end(row, call, outcome, now)
            self._changes.call(row.key, late_place(self.late.note(row, call, now)))
            return call
        row.missing.append(call_id)
        del row.missing[:-MAX_MISSING_KEPT]
        self._end(row, call, outcome, now)
        return call

    def fail_try(self, key: ProgramKey, call_id: CallId, now: Instant) -> CallRow | None:
        """The engine that has a call is gone. Returns the call if another engine may run it, else ends it as FAILED."""
        row = self.index.rows[key]
        call = row.calls[call_id]
        if tries.fail(call, call.engine_id, Outcome.FAILED):
            self.end_call(key, call_id, Outcome.FAILED, now)
            return None
        self.index.move_call(row, call, call.engine_id, running=False)
        self._changes.progress(key, self.index.place_of(row, call))
        return call

    def end_exchange(self, row: ProgramRow, call: CallRow, outcome: Outcome, engine_id: EngineId) -> None:
        """The HTTP exchange of a call is over; `engine_id` has answered, if one did. The call goes on."""
        call.exchange = outcome
        if tries.has_moved(call, engine_id):
            tries.begin(call, engine_id)
            self.index.move_call(row, call, engine_id, running=False)
        self._changes.progress(row.key, self.index.place_of(row, call))

    def _charge_and_end(self, row: ProgramRow, call: CallRow, outcome: Outcome, now: Instant) -> None:
        root = self.index.root_of(row)
        account = charge_call(self.accounting, root.attained_service_us, call.attained_service_us, call.service_us)
        root.attained_service_us = min(account, MAX_SUM)
        root.account_wait_us = min(root.account_wait_us + call.wait_us, MAX_SUM)
        row.total_service_us = min(row.total_service_us + call.service_us, MAX_SUM)
        row.wait_us = min(row.wait_us + call.wait_us, MAX_SUM)
        row.prompt_tokens = min(row.prompt_tokens + call.prompt_tokens, MAX_SUM)
        row.cached_tokens = min(row.cached_tokens + call.cached_tokens, MAX_SUM)
        row.output_tokens = min(row.output_tokens + call.output_tokens, MAX_SUM)
        row.preemptions = min(row.preemptions + call.preemptions, MAX_SUM)
        call_charged(row, call, self.totals.times)
        row.calls_completed += 1
        tokens = call.prompt_tokens + call.output_tokens
        self.totals.budgets_spent += budgets.charge(root, tokens=tokens, engine_us=call.service_us, calls=1)
        self.tokens.add(row.tenant, tokens, now)
        self.rates.used(row.tenant, tokens, now)
        thread = row.threads.get(call.thread_id)
        if thread is not None:
            thread.service_us = min(thread.service_us + call.service_us, MAX_SUM)
            thread.wait_us = min(thread.wait_us + call.wait_us, MAX_SUM)
        self.programs.touch(row, with_root=True)
        self._end(row, call, outcome, now)

    def _end(self, row: ProgramRow, call: CallRow, outcome: Outcome, now: Instant) -> None:
        self._changes.call(row.key, self.index.drop_call(row, call))
        self.demand.call_ended(
            row.root_key, call.call_id, call.engine_id, call.prompt_tokens + call.output_tokens, call.service_us,
            call.wait_us, now.steady_us,
        )  # fmt: skip
        row.last_completion_us = now.unix_us
        if row.state is not ProgramState.CLOSED:
            self.index.active(row, now.steady_us)
        self.totals.calls_completed += 1
        self.totals.outcomes[outcome] = self.totals.outcomes.get(outcome, 0) + 1
        self.programs.traces.ended(row.key, Finished(call, outcome, now.unix_us))
        if self.programs.endings is not None:
            ended = EndedCall(origin_of(row, self.index.root_of(row)), call, outcome, now.unix_us)
            self.programs.endings.note(row.tenant, ended)
        if row.closing and not row.calls:
            self.programs.close(row, Outcome.COMPLETED, now)

    def find(self, tenant: Tenant, program_id: str) -> ProgramRow:
        """The row of a tenant's program. NotFoundError."""
        return self.index.find(ProgramKey(tenant, program_id))  # type: ignore[arg-type]
