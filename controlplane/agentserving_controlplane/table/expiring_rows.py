"""Calls and rows that have outlived their use, found and ended. Pure. expiry.py: ages, deadlines.py: their order."""

from __future__ import annotations

from agentserving.contract.ids import CallId, ProgramKey

from agentserving_controlplane.instant import Instant
from agentserving_controlplane.table import budgets
from agentserving_controlplane.table.changes import Changes
from agentserving_controlplane.table.expiry import SPENT_PATIENCE_US, Limits, idle_limit_us, retention_us
from agentserving_controlplane.table.late_charges import LateCharges
from agentserving_controlplane.table.program_index import ProgramIndex
from agentserving_controlplane.table.programs import Programs
from agentserving_controlplane.table.rows import ProgramRow
from agentserving_controlplane.table.states import Outcome, ProgramState
from agentserving_controlplane.table.stored_items import late_place


class ExpiringRows:
    """Expires the programs and calls of one process table."""

    def __init__(self, index: ProgramIndex, programs: Programs, late: LateCharges, changes: Changes) -> None:
        self._index, self._programs, self._late, self._changes = index, programs, late, changes

    def silent_call(self, limits: Limits, now: Instant) -> CallId | None:
        """A call that no engine has reported for too long: to be ended as EXPIRED."""
        for call_id, heard_us in self._index.heard_us.items():
            return call_id if now.steady_us - heard_us > limits.call_idle_us else None
        return None

    def forget_silent(self, limits: Limits, now: Instant) -> bool:
        """Forgets one call that has ended and of which its engine has said nothing for too long; False when none is."""
        call_id = self._late.silent(limits.call_idle_us, now)
        if call_id is None:
            return False
        key, number = self._late.forget(call_id)
        self._changes.progress(key, late_place(number))
        self._index.deadlines.mark(key)
        return True

    def schedule_marked(self, limits: Limits, at_most: int) -> int:
        """Schedules rows that have changed since the last time, at most so many; returns how many."""
        for count in range(at_most):
            key = self._index.deadlines.pop_marked()
            if key is None:
                return count
            self._schedule(key, limits)
        return at_most

    def _schedule(self, key: ProgramKey, limits: Limits) -> None:
        row = self._index.rows.get(key)
        limit_us = self._limit_us(row, limits) if row is not None else None
        if limit_us is not None:
            self._index.deadlines.schedule(key, self._index.active_us[key] + limit_us)

    def _limit_us(self, row: ProgramRow, limits: Limits) -> int | None:
        """Age at which a row expires; None while it cannot, which ends with a mark."""
        if row.calls or self._late.count(row.key):
            return None
        if row.state is ProgramState.CLOSED:
            return None if self._index.has_children(row) else retention_us(row, limits)
        root = self._index.root_of(row)
        if root.paused:
            return None
        limit_us = idle_limit_us(row, limits)
        return max(limit_us, SPENT_PATIENCE_US) if budgets.is_spent(root) else limit_us

    def take_due(self, limits: Limits, now: Instant, at_most: int) -> tuple[int, list[ProgramRow]]:
        """Looks at rows whose time has come, at most so many; returns how many, and those to be passed to `expire`.

        Rows that have been active since are scheduled again.
        """
        expired: list[ProgramRow] = []
        for count in range(at_most):
            key = self._index.deadlines.pop_due(now.steady_us)
            if key is None:
                return count, expired
            row = self._index.rows.get(key)
            if row is not None and self._is_due(row, limits, now):
                expired.append(row)
            else:
                self._schedule(key, limits)
        return at_most, expired

    def _is_due(self, row: ProgramRow, limits: Limits, now: Instant) -> bool:
        limit_us = self._limit_us(row, limits)
        return limit_us is not None and now.steady_us - self._index.active_us[row.key] > limit_us

    def expire(self, row: ProgramRow, limits: Limits, now: Instant) -> bool:
        """Closes an idle program, removes one that has been closed for long enough; True when the row is gone."""
        if not self._is_due(row, limits, now):
            return False
        if row.state is ProgramState.CLOSED:
            self._remove(row)
            return True
        self._programs.close(row, Outcome.EXPIRED, now)
        return False

    def forget_surplus(self, most: int, at_most: int) -> list[ProgramRow]:
        """Removes closed programs when there are more than `most`, `at_most` of them at a time; returns them."""
        surplus = len(self._index.closed) - most
        rows = [self._index.rows[key] for key in self._index.closed.oldest(min(at_most, surplus))]
        for row in rows:
            if row.calls or self._late.count(row.key) or self._index.has_children(row):
                # It goes with what needs it; others are next.
                self._index.closed.add(row.key, cancelled=row.cancelled)
            else:
                self._remove(row)
        return [row for row in rows if row.key not in self._index.rows]

    def _remove(self, row: ProgramRow) -> None:
        self._changes.forget(row.key)
        self._programs.traces.forget(row.key)
        self._index.remove(row)
