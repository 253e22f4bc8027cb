"""Calls that ended while their engine went on: what the engine adds is charged. Pure.

A sender may end a call, or replace it by a retry, before its engine does. The account must not depend on who is first:
otherwise ending one's own calls early would be a way to be served for nothing.
"""

from __future__ import annotations

from agentserving.contract.accounting import charge_call
from agentserving.contract.ids import CallId
from agentserving.contract.policy import Accounting

from agentserving_controlplane.table.reports import CallReport, raise_counters
from agentserving_controlplane.table.rows import MAX_SUM, CallRow, ProgramRow

# Engines abort such calls, or end them within minutes. About a kilobyte each; the oldest is forgotten first.
MAX_CALLS = 16_384


class LateCharges:
    """The newest calls that were charged before their engine's last report. Not stored: a restart forgets them."""

    def __init__(self, limit: int = MAX_CALLS) -> None:
        self._limit = limit
        self._calls: dict[CallId, CallRow] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def note(self, call: CallRow) -> None:
        """A call has been charged with what its engine had reported, and has left its program's row."""
        self._calls[call.call_id] = call
        if len(self._calls) > self._limit:
            del self._calls[next(iter(self._calls))]

    def charge(self, row: ProgramRow, root: ProgramRow, report: CallReport, accounting: Accounting) -> bool:
        """Charges what a report adds to such a call of the row's program; False when it is none, or adds nothing."""
        call = self._calls.get(report.call_id)
        if call is None or (report.engine_id, report.boot_id) != (call.engine_id, call.boot_id):
            return False
        if report.outcome:
            del self._calls[report.call_id]
        before_us = call.service_us
        raise_counters(call, report)
        added_us = call.service_us - before_us
        service_us = call.service_us if accounting is Accounting.CRITICAL_PATH else added_us
        account = charge_call(accounting, root.attained_service_us, call.attained_service_us, service_us)
        root.attained_service_us = min(account, MAX_SUM)
        row.total_service_us = min(row.total_service_us + added_us, MAX_SUM)
        return added_us > 0
