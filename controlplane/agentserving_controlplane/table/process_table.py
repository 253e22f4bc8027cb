"""The process table: one row per live program, and the account that decides who runs next.

Pure: time and epoch are given, nothing is read or written outside. Reports are absolute, so hearing one twice, late or
out of order changes nothing (rows.py says how a call that was counted is told from one whose admission was lost). What
it is made of: program_index (every way to look rows up), programs (their life, and what changed), and here the calls.
"""

from __future__ import annotations

from agentserving.contract.accounting import account_at_admit, charge_call
from agentserving.contract.policy import Accounting

from agentserving_controlplane.errors import ConflictError, InvalidError, NotFoundError
from agentserving_controlplane.table.endings import EndedCall, origin_of
from agentserving_controlplane.table.program_index import ACTIVE, CLOSED, PAUSED, TOOL_WAIT
from agentserving_controlplane.table.programs import PROGRAM_ID, Programs
from agentserving_controlplane.table.reported import MAX_COUNTER, Reported, raise_counters
from agentserving_controlplane.table.rows import (
    MAX_ENGINES_KEPT,
    MAX_EPOCHS_KEPT,
    MAX_MISSING_KEPT,
    MAX_OPEN_CALL_BYTES,
    MAX_SUM,
    MAX_THREAD_BYTES,
    MAX_THREADS_KEPT,
    CallRow,
    ProgramRow,
    ThreadRow,
    call_parts,
    cut,
    row_key,
)

COMPLETED, CANCELLED, FAILED, EXPIRED = 1, 2, 3, 4

MAX_PARENTS, MAX_OPEN_CALLS = 64, 1024
# A program that waits for a tool is abandoned after so many times the idle limit.
TOOL_WAIT_PATIENCE = 6


class ProcessTable(Programs):
    """All live programs of all tenants."""

    def __init__(self, epoch: int, accounting: Accounting = Accounting.CRITICAL_PATH) -> None:
        super().__init__(epoch)
        self.accounting = accounting

    # -- calls ---------------------------------------------------------------------------------------------------

    def admit(
        self,
        row: ProgramRow,
        now_us: int,
        *,
        engine_id: str,
        thread_id: str = "",
        parents: tuple[str, ...] = (),
        attempt: int = 1,
        key: str = "",
        request: str = "",
    ) -> CallRow:
        """Takes a call in, on an engine that has been chosen."""
        self.check_admittable(row, thread_id, parents)
        n = row.admitted.get(self.epoch, 0)
        row.admitted[self.epoch] = n + 1
        account = account_at_admit(self.accounting, self.root_of(row).attained_service_us)
        call = CallRow(
            f"{row.program_id}.{self.epoch}.{n}", attempt, thread_id, engine_id, account, now_us, now_us,
            parents=list(parents), idempotency_key=key, request=request,
        )  # fmt: skip
        self._add_call(row, call)
        self._thread(row, thread_id).calls += 1
        row.last_arrival_us = now_us
        if row.state == TOOL_WAIT:
            row.state = ACTIVE
        if engine_id in row.engines:
            row.engines.remove(engine_id)
        row.engines.insert(0, engine_id)
        del row.engines[MAX_ENGINES_KEPT:]
        self._touch(row)
        return call

    def _thread(self, row: ProgramRow, thread_id: str) -> ThreadRow:
        """The thread, made when new, as the one used last; the one unused for longest makes room."""
        thread = row.threads.pop(thread_id, None)
        if thread is None:
            if len(row.threads) >= MAX_THREADS_KEPT:
                del row.threads[next(iter(row.threads))]
            thread = ThreadRow(thread_id)
        row.threads[thread_id] = thread
        return thread

    def check_admittable(self, row: ProgramRow, thread_id: str, parents: tuple[str, ...]) -> None:
        """Raises what `admit` would; before an engine is chosen."""
        self._check_open(row)
        size = self.call_bytes.get((row.tenant, row.program_id), 0)
        if len(row.calls) >= MAX_OPEN_CALLS or size > MAX_OPEN_CALL_BYTES:
            raise ConflictError("TOO_MANY_CALLS", f"a program has at most {MAX_OPEN_CALLS} calls in flight")
        if len(thread_id.encode()) > MAX_THREAD_BYTES:
            raise InvalidError("BAD_THREAD_ID", f"thread_id: at most {MAX_THREAD_BYTES} bytes", field="thread_id")
        if len(parents) > MAX_PARENTS:
            raise InvalidError("TOO_MANY_PARENTS", f"at most {MAX_PARENTS} parents", field="parent_call_ids")
        for parent in parents:
            if not self.knows_call(row, parent):
                raise NotFoundError(
                    "PARENT_CALL_NOT_FOUND", f"{parent!r} is no earlier call of this program", field="parent_call_ids"
                )

    def knows_call(self, row: ProgramRow, call_id: str) -> bool:
        """True for a call of this program that has been admitted, whether or not it has ended."""
        known = call_parts(call_id)
        return known is not None and known[0] == row.program_id and known[2] < row.admitted.get(known[1], 0)

    def report(self, told: Reported, now_us: int) -> ProgramRow | None:
        """An engine's word on a call. Gives the row when it changed something."""
        parts = call_parts(told.call_id)
        row = self.rows.get((told.tenant, told.program_id))
        call = row.calls.get(told.call_id) if row is not None else None
        if parts is None or told.negative:
            self.totals.reports_ignored += 1
            return None
        if row is None or call is None:
            adopted = self._adopt(row, told, parts, now_us)
            if adopted is None:
                self.totals.reports_ignored += 1
                return None
            row, call = adopted
        if told.attempt < call.attempt:
            return None
        self._move_call(row, call, told.engine_id, told.running)
        raise_counters(call, told)
        call.heard_us = now_us
        self._touch(row)
        if told.outcome:
            self._end(row, call, told.outcome, now_us)
        return row

    def _adopt(
        self, row: ProgramRow | None, told: Reported, parts: tuple[str, int, int], now_us: int
    ) -> tuple[ProgramRow, CallRow] | None:
        """A call that the table does not know: counted already (None), or lost when a control plane died."""
        program_id, epoch, n = parts
        missing = row is not None and told.call_id in row.missing
        if program_id != told.program_id or (epoch >= self.epoch and not missing):
            return None
        if row is None:
            row = self._adopt_program(told, now_us)
            if row is None:
                return None
        watermark = row.admitted.get(epoch, 0)
        if missing:
            row.missing.remove(told.call_id)
        elif n >= watermark:
            row.missing += [f"{program_id}.{epoch}.{i}" for i in range(max(watermark, n - 1000), n)]
            del row.missing[:-MAX_MISSING_KEPT]
            row.admitted[epoch] = n + 1
            while len(row.admitted) > MAX_EPOCHS_KEPT:
                del row.admitted[min(row.admitted)]
        else:
            return None
        thread_id = cut(told.thread_id, MAX_THREAD_BYTES)
        account = min(told.attained_service_us, MAX_COUNTER)
        call = CallRow(told.call_id, told.attempt, thread_id, told.engine_id, account, now_us, now_us)
        self._add_call(row, call)
        self._thread(row, thread_id).calls += 1
        self.totals.calls_adopted += 1
        return row, call

    def _adopt_program(self, told: Reported, now_us: int) -> ProgramRow | None:
        root = told.root or told.program_id
        if not (PROGRAM_ID.fullmatch(told.program_id) and PROGRAM_ID.fullmatch(root)):
            return None
        above = self.rows.get((told.tenant, root))
        if above is None:
            above = ProgramRow(root, told.tenant, now_us, root=root, last_arrival_us=now_us)
            self._insert(above)
            self._touch(above)
        if root == told.program_id:
            return above
        row = ProgramRow(told.program_id, told.tenant, now_us, parent=root, root=root, last_arrival_us=now_us)
        self._insert(row)
        self._touch(row, above)
        return row

    def end_call(self, row: ProgramRow, call_id: str, outcome: int, now_us: int) -> None:
        """Ends a call by somebody else's word than the engine's.

        One that was reported is charged with what was reported last. One that was not is taken back: should an engine
        speak of it after all, it counts as if its admission had been lost.
        """
        call = row.calls.get(call_id)
        if call is None:
            return
        if call.boot_id:
            self._end(row, call, outcome, now_us)
            return
        self._drop_call(row, call)
        row.missing.append(call_id)
        del row.missing[:-MAX_MISSING_KEPT]
        self._ended(row, call, outcome, now_us)

    def _end(self, row: ProgramRow, call: CallRow, outcome: int, now_us: int) -> None:
        self._drop_call(row, call)
        root = self.root_of(row)
        account = charge_call(self.accounting, root.attained_service_us, call.attained_service_us, call.service_us)
        root.attained_service_us = min(account, MAX_SUM)
        root.account_wait_us = min(root.account_wait_us + call.wait_us, MAX_SUM)
        row.total_service_us = min(row.total_service_us + call.service_us, MAX_SUM)
        for name in ("wait_us", "prompt_tokens", "cached_tokens", "output_tokens", "preemptions"):
            setattr(row, name, min(getattr(row, name) + getattr(call, name), MAX_SUM))
        row.calls_completed += 1
        thread = row.threads.get(call.thread_id)
        if thread is not None:
            thread.service_us = min(thread.service_us + call.service_us, MAX_SUM)
            thread.wait_us = min(thread.wait_us + call.wait_us, MAX_SUM)
        self._touch(row, root)
        self._ended(row, call, outcome, now_us)

    def _ended(self, row: ProgramRow, call: CallRow, outcome: int, now_us: int) -> None:
        row.last_completion_us = now_us
        self.totals.calls_completed += 1
        self.totals.outcomes[outcome] = self.totals.outcomes.get(outcome, 0) + 1
        self._touch(row)
        if self.endings is not None:
            self.endings.note(row.tenant, EndedCall(origin_of(row, self.root_of(row)), call, outcome, now_us))
        if row.closing and not row.calls:
            self.close(row, COMPLETED, now_us)

    # -- expiry --------------------------------------------------------------------------------------------------

    def expire(self, row: ProgramRow, now_us: int, *, idle_us: int, silent_us: int, retention_us: int) -> bool:
        """Ends what nobody will end of one row; True when the row itself is gone."""
        for call in [c for c in row.calls.values() if now_us - c.heard_us > silent_us]:
            self.end_call(row, call.call_id, EXPIRED, now_us)
            self.totals.calls_expired += 1
        if row.calls:
            return False
        if row.state == CLOSED:
            if now_us - row.close_us <= retention_us or self.has_children(row):
                return False
            self._changed.pop((row.tenant, row.program_id), None)
            self._remove(row)
            return True
        last = max(row.last_arrival_us, row.last_completion_us, row.open_us)
        patience = TOOL_WAIT_PATIENCE if row.state == TOOL_WAIT else 1
        if self.state_of(row) != PAUSED and now_us - last > idle_us * patience:
            self.close(row, EXPIRED, now_us)
        return False


__all__ = ["ACTIVE", "CLOSED", "PAUSED", "TOOL_WAIT", "ProcessTable", "Reported", "row_key"]
