"""Calls that ended while their engine goes on: what the engine adds is charged. Pure.

A sender may end a call, or replace it by a retry, before its engine does. The account must not depend on who is first:
otherwise ending one's own calls early would be a way to be served for nothing.

Such a call is remembered until its engine's final report, or until nothing has been heard of it for as long as of a
call in flight. It counts as one of its program's calls in flight, so their number is bounded. It is stored with the
program's row, in lists with keys of their own: what is charged and what remains to be charged land together.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable

from agentserving.contract.accounting import charge_call
from agentserving.contract.ids import CallId, ProgramKey
from agentserving.contract.policy import Accounting

from agentserving_controlplane.instant import Instant
from agentserving_controlplane.table import budgets
from agentserving_controlplane.table.bounds import Tally
from agentserving_controlplane.table.reports import CallReport, raise_counters
from agentserving_controlplane.table.rows import MAX_SUM, CallRow, ProgramRow

# Of one list, about 600 bytes each at most.
MAX_LISTED = 32
_NONE: dict[CallId, CallRow] = {}


class LateCharges:
    """Calls that were charged before their engine's last report. Lists of a program are numbered from 0."""

    def __init__(self) -> None:
        self._lists: dict[ProgramKey, dict[int, dict[CallId, CallRow]]] = {}
        self._places: dict[CallId, tuple[ProgramKey, int]] = {}
        # Steady time of the last report, the oldest first.
        self._heard_us: OrderedDict[CallId, int] = OrderedDict()
        self.of_tenant = Tally()

    def __len__(self) -> int:
        return len(self._places)

    def count(self, key: ProgramKey) -> int:
        """Such calls of one program."""
        lists = self._lists.get(key)
        return sum(map(len, lists.values())) if lists is not None else 0

    def listed(self, key: ProgramKey, number: int) -> dict[CallId, CallRow]:
        """The calls of a list; empty when it is to be deleted."""
        return self._lists.get(key, {}).get(number, _NONE)

    def note(self, row: ProgramRow, call: CallRow, now: Instant) -> int:
        """A call has been charged with what its engine had reported, and has left its row; returns its list."""
        number = next(each for each in itertools.count() if len(self.listed(row.key, each)) < MAX_LISTED)
        short = CallRow(
            call_id=call.call_id,
            attempt=call.attempt,
            thread_id="",
            engine_id=call.engine_id,
            attained_service_us=call.attained_service_us,
            admit_us=call.admit_us,
            boot_id=call.boot_id,
            service_us=call.service_us,
            prompt_tokens=call.prompt_tokens,
            output_tokens=call.output_tokens,
        )
        self.restore(row.key, number, (short,), now)
        return number

    def restore(self, key: ProgramKey, number: int, calls: Iterable[CallRow], now: Instant) -> None:
        """Adds calls of a list. Their ages count from now."""
        listed = self._lists.setdefault(key, {}).setdefault(number, {})
        for call in calls:
            listed[call.call_id] = call
            self.of_tenant.add(key.tenant, 1)
            self._places[call.call_id] = (key, number)
            self._heard_us[call.call_id] = now.steady_us

    def charge(
        self, row: ProgramRow, root: ProgramRow, report: CallReport, accounting: Accounting, now: Instant
    ) -> int | None:
        """Charges what a report adds to such a call of the row; returns the list that changed, None when none did."""
        key, number = self._places.get(report.call_id, (None, 0))
        if key != row.key:
            return None
        call = self._lists[row.key][number][report.call_id]
        if (report.engine_id, report.boot_id) != (call.engine_id, call.boot_id):
            return None
        before_us, prompt, output = call.service_us, call.prompt_tokens, call.output_tokens
        raise_counters(call, report)
        self._heard_us[call.call_id] = now.steady_us
        self._heard_us.move_to_end(call.call_id)
        added_us = call.service_us - before_us
        service_us = call.service_us if accounting is Accounting.CRITICAL_PATH else added_us
        account = charge_call(accounting, root.attained_service_us, call.attained_service_us, service_us)
        root.attained_service_us = min(account, MAX_SUM)
        row.total_service_us = min(row.total_service_us + added_us, MAX_SUM)
        row.prompt_tokens = min(row.prompt_tokens + call.prompt_tokens - prompt, MAX_SUM)
        row.output_tokens = min(row.output_tokens + call.output_tokens - output, MAX_SUM)
        added_tokens = call.prompt_tokens + call.output_tokens - prompt - output
        budgets.charge(root, tokens=added_tokens, engine_us=added_us, calls=0)
        if report.outcome:
            self.forget(call.call_id)
        return number if report.outcome or added_us or added_tokens else None

    def silent(self, limit_us: int, now: Instant) -> CallId | None:
        """A call of which nothing has been heard for too long."""
        for call_id, heard_us in self._heard_us.items():
            return call_id if now.steady_us - heard_us > limit_us else None
        return None

    def forget(self, call_id: CallId) -> tuple[ProgramKey, int]:
        """Nothing more will be charged; returns the list that changed."""
        key, number = self._places.pop(call_id)
        del self._heard_us[call_id]
        self.of_tenant.add(key.tenant, -1)
        lists = self._lists[key]
        del lists[number][call_id]
        if not lists[number]:
            del lists[number]
        if not lists:
            del self._lists[key]
        return key, number
