"""What the leader does from time to time: expiry, levels from finished programs, forgetting engines.

A round costs what is due and what has changed since the last one (table/deadlines.py); only levels are computed from
all rows. Work on many rows yields to other tasks every few rows, so it never delays an admission for long.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

import structlog
from agentserving.contract.ids import ProgramKey
from agentserving.contract.policy import Source

from agentserving_controlplane.engine_sessions import ENDS_PER_SLICE, ROWS_PER_SLICE
from agentserving_controlplane.engines.directives import ExecutePolicy, PauseCalls
from agentserving_controlplane.engines.sizing import context_share
from agentserving_controlplane.policy.auto import Choice
from agentserving_controlplane.policy.computed import computed
from agentserving_controlplane.policy.contention import Contention, Recent
from agentserving_controlplane.policy.gittins import RELEVEL_US, Sizes
from agentserving_controlplane.state import LeaderState
from agentserving_controlplane.store.port import Write
from agentserving_controlplane.table import rows
from agentserving_controlplane.table.expiry import Limits
from agentserving_controlplane.table.rows import ProgramRow
from agentserving_controlplane.table.states import Outcome, ProgramState

log = structlog.get_logger()


def _log_choices(before: Iterable[Choice], choices: Iterable[Choice]) -> None:
    known = {choice.class_name: choice.chosen for choice in before}
    for choice in choices:
        if known.get(choice.class_name) is not choice.chosen:
            name = "all" if choice.class_name is None else choice.class_name
            log.info("policy chosen", programs=name, chosen=str(choice.chosen), reason=choice.reason)


class Upkeep:
    """`tick` is to be called every few seconds."""

    def __init__(self, state: LeaderState) -> None:
        self._state = state
        self._relevel_due_us = 0
        # Sizes of finished programs. They outlive their rows; `_counted` are the programs in it that still have one.
        self._sizes, self._counted, self._contention = Sizes(), set[ProgramKey](), Recent()
        settings = state.settings
        self._limits = Limits(
            program_idle_us=int(settings.program_idle_s * 1e6),
            call_idle_us=int(settings.call_idle_s * 1e6),
            closed_retention_us=int(settings.closed_retention_s * 1e6),
        )

    def relevel_now(self) -> None:
        """The policy has changed: levels are computed at the next tick, from what it counts as service."""
        self._relevel_due_us = 0
        self._sizes, self._counted, self._contention = Sizes(), set(), Recent()

    async def tick(self) -> None:
        """One round."""
        for engine in self._state.engines.forget_lost(self._state.now().steady_us):
            log.info("engine forgotten", engine=engine.engine_id)
            self._state.wake()
        # Notes whether calls wait, also where only a seldom scrape asks.
        self._state.demand()
        await self._state.tend_store()
        for tenant in self._state.table.tokens.take_past(self._state.now()):
            self._state.put_tokens(tenant)
        await self.relevel()
        await self._expire_calls()
        await self._forget_late_calls()
        await self._expire_programs()
        await self._forget_surplus()

    async def _expire_calls(self) -> None:
        """Ends the calls that no engine has reported for too long, charged with their last report."""
        state, count = self._state, 0
        table = state.table
        while (call_id := table.expiring.silent_call(self._limits, state.now())) is not None:
            table.end_call(table.index.calls[call_id], call_id, Outcome.EXPIRED, state.now())
            table.totals.calls_expired += 1
            state.settle()
            count += 1
            if count % ENDS_PER_SLICE == 0:
                await asyncio.sleep(0)

    async def _forget_late_calls(self) -> None:
        """Gives up calls that ended here first, and of which their engines say nothing any more."""
        state, count = self._state, 0
        while state.table.expiring.forget_silent(self._limits, state.now()):
            count += 1
            if count % ENDS_PER_SLICE == 0:
                state.settle()
                await asyncio.sleep(0)
        state.settle()

    async def _expire_programs(self) -> None:
        """Closes abandoned programs, and forgets those that have been closed for long enough."""
        state = self._state
        examined = ROWS_PER_SLICE
        while examined == ROWS_PER_SLICE:
            examined = state.table.expiring.schedule_marked(self._limits, ROWS_PER_SLICE)
            await asyncio.sleep(0)
        examined = ROWS_PER_SLICE
        while examined == ROWS_PER_SLICE:
            examined, expired = state.table.expiring.take_due(self._limits, state.now(), ROWS_PER_SLICE)
            for row in expired:
                self._expire(row)
            await asyncio.sleep(0)

    async def _forget_surplus(self) -> None:
        """Forgets the oldest closed programs when more are retained than there is room for."""
        table = self._state.table
        while rows := table.expiring.forget_surplus(table.bounds.capacity.closed_programs, ROWS_PER_SLICE):
            for row in rows:
                self._forget(row.key)
            await asyncio.sleep(0)

    def _expire(self, row: ProgramRow) -> None:
        state, was_paused = self._state, row.paused
        if state.table.expiring.expire(row, self._limits, state.now()):
            self._forget(row.key)
        state.settle()
        if was_paused and not row.paused:
            state.links.send_all(PauseCalls(row.key, False))

    def _forget(self, key: ProgramKey) -> None:
        state = self._state
        state.history.begin()
        state.commits.put_together([Write(rows.row_key(*key), None)])
        state.history.note(key, removed=True)
        state.wake()

    async def relevel(self) -> None:
        """Computes levels from the sizes of programs, when the policy asks for that and they are due."""
        state, now_us = self._state, self._state.now().steady_us
        policy = state.policy.policy
        if policy.source is Source.FIXED or now_us < self._relevel_due_us:
            return
        self._relevel_due_us = now_us + RELEVEL_US
        sizes, live, closed = self._sizes, [], set[ProgramKey]()
        open_calls, names = Counter[ProgramKey](), dict[ProgramKey, str]()
        for count, row in enumerate(list(state.table.rows.values()), start=1):
            if count % ROWS_PER_SLICE == 0:
                await asyncio.sleep(0)
            open_calls[row.root_key] += len(row.calls)
            if row.root != row.program_id:
                continue
            names[row.key] = row.name
            if row.state is ProgramState.CLOSED and row.outcome in (Outcome.COMPLETED, Outcome.EXPIRED):
                closed.add(row.key)
                if row.key not in self._counted:
                    sizes.end(row.name, row.attained_service_us)
            else:
                live.append((row.name, row.attained_service_us))
        self._counted = closed
        sizes.go_on(live)
        before, unix_us = state.policy_in_force.choices, state.now().unix_us
        attached = [engine for engine in state.engines if engine.attached]
        contention = self._contention.with_past(
            Contention.of(
                sum(engine.load.waiting for engine in attached),
                sum(engine.load.running for engine in attached),
                ((names.get(root, ""), calls) for root, calls in open_calls.items()),
                context_share(state.table.demand.signals(now_us), attached),
            ),
            state.table.totals.times,
        )
        decided = await asyncio.to_thread(computed, policy, sizes, contention, before, unix_us)
        # Another policy may have been applied in the meantime.
        if state.policy.policy is not policy:
            return
        changed, items = state.policy_in_force.execute(decided)
        if items:
            state.commits.put_together([Write(key, value) for key, value in items])
        if changed:
            state.links.send_all(ExecutePolicy(state.policy_in_force.for_engines))
            _log_choices(before, decided.choices)
