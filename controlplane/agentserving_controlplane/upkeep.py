"""What the leader does from time to time: expiry, levels from finished programs, forgetting engines.

A walk over all rows yields to other tasks every few rows, so it never delays an admission for long.
"""

from __future__ import annotations

import asyncio

import structlog
from agentserving.contract.ids import ProgramKey
from agentserving.contract.policy import Source

from agentserving_controlplane.engine_sessions import ENDS_PER_SLICE, ROWS_PER_SLICE
from agentserving_controlplane.engines.directives import ExecutePolicy, PauseCalls
from agentserving_controlplane.policy.gittins import RELEVEL_US, Sizes
from agentserving_controlplane.state import LeaderState
from agentserving_controlplane.store.port import Write
from agentserving_controlplane.table import rows
from agentserving_controlplane.table.expiry import Limits
from agentserving_controlplane.table.states import Outcome, ProgramState

log = structlog.get_logger()


class Upkeep:
    """`tick` is to be called every few seconds."""

    def __init__(self, state: LeaderState) -> None:
        self._state = state
        self._relevel_due_us = 0
        settings = state.settings
        self._limits = Limits(
            program_idle_us=int(settings.program_idle_s * 1e6),
            call_idle_us=int(settings.call_idle_s * 1e6),
            closed_retention_us=int(settings.closed_retention_s * 1e6),
        )

    def relevel_now(self) -> None:
        """The policy has changed: levels are computed at the next tick."""
        self._relevel_due_us = 0

    async def tick(self) -> None:
        """One round."""
        for engine in self._state.engines.forget_lost(self._state.now().steady_us):
            log.info("engine forgotten", engine=engine.engine_id)
            self._state.wake()
        await self._relevel()
        for count, key in enumerate(list(self._state.table.rows), start=1):
            if count % ROWS_PER_SLICE == 0:
                await asyncio.sleep(0)
            await self._expire(key)

    async def _expire(self, key: ProgramKey) -> None:
        state = self._state
        table = state.table
        row = table.rows.get(key)
        if row is None:
            return
        for count, call_id in enumerate(table.silent_calls(row, self._limits, state.now()), start=1):
            if count % ENDS_PER_SLICE == 0:
                await asyncio.sleep(0)
            call = table.end_call(key, call_id, Outcome.EXPIRED, state.now())
            if call is not None:
                table.totals.calls_expired += 1
                state.settle()
        was_paused = row.paused
        if key in table.rows and table.expire(row, self._limits, state.now()):
            self._forget(key)
        state.settle()
        if was_paused and not row.paused:
            state.links.send_all(PauseCalls(key, False))

    def _forget(self, key: ProgramKey) -> None:
        state = self._state
        state.history.begin()
        state.commits.put_together([Write(rows.row_key(*key), None)])
        state.history.note(key, removed=True)
        state.wake()

    async def _relevel(self) -> None:
        """Computes levels from the sizes of finished programs, when the policy asks for that."""
        state, now_us = self._state, self._state.now().steady_us
        policy = state.policy.policy
        if policy.source is not Source.GITTINS or now_us < self._relevel_due_us:
            return
        self._relevel_due_us = now_us + RELEVEL_US
        sizes, live = Sizes(), []
        for count, row in enumerate(list(state.table.rows.values()), start=1):
            if count % ROWS_PER_SLICE == 0:
                await asyncio.sleep(0)
            if row.root != row.program_id:
                continue
            if row.state is ProgramState.CLOSED and row.outcome in (Outcome.COMPLETED, Outcome.EXPIRED):
                sizes.end(row.name, row.attained_service_us)
            else:
                live.append((row.name, row.attained_service_us))
        sizes.go_on(live)
        executed = await asyncio.to_thread(sizes.relevel, policy)
        # Another policy may have been applied in the meantime.
        if state.policy.policy is policy and state.policy_in_force.execute(executed):
            state.links.send_all(ExecutePolicy(state.policy_in_force.for_engines))
