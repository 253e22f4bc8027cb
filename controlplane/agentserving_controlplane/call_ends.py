"""Ends of calls other than by a final report: the HTTP exchange is over, an engine is gone, nothing is heard any more.

Whichever comes first ends a call, once. A report that could still come has time to come, because a call which ended
without it would end a second time by it. These times are timers of this process; `resume` starts them again after a
restart, from what the rows say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec
import structlog
from agentserving.contract.ids import CallId, EngineId, ProgramKey, Tenant

from agentserving_controlplane.engines.directives import CancelCalls
from agentserving_controlplane.errors import NotFoundError
from agentserving_controlplane.state import LeaderState
from agentserving_controlplane.table import tries
from agentserving_controlplane.table.rows import CallRow, ProgramRow, call_parts
from agentserving_controlplane.table.states import Outcome

log = structlog.get_logger()

# After the exchange, a call ends with its engine's final report, or after this time without one.
EXCHANGE_OVER_S = 1.5
# After a try that has failed the sender tries the next engine within milliseconds, and says when the exchange is over.
# This bounds the wait for a sender that died in between, and for sidecars to attach after a restart.
NEXT_TRY_S = 10.0


class EndOfCall(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """EndCall; `never_started`: no engine has seen the call. `engine_id` answered it, as one of `tries` engines."""

    tenant: Tenant
    call_id: CallId
    outcome: Outcome
    never_started: bool = False
    engine_id: EngineId = EngineId("")
    tries: int = 0
    # The sender cannot know whether an engine has the call.
    if_unseen: bool = False


class CallEnds:
    """EndCall, and what ends a call when no one says anything."""

    def __init__(self, state: LeaderState) -> None:
        self._state = state

    def resume(self, rows: list[ProgramRow]) -> None:
        """The table has been restored: the time of calls that were about to end begins again."""
        for row in rows:
            for call in row.calls.values():
                if call.exchange or tries.is_over(call):
                    self._later(NEXT_TRY_S, call.call_id)

    # -- EndCall -------------------------------------------------------------------------------------------------

    def end(self, request: EndOfCall) -> None:
        """The exchange of a call is over. Repeating it changes nothing. NotFoundError.

        A call that an engine may still report ends with that engine's final report, or within EXCHANGE_OVER_S. Unless
        it was answered, its engines are asked to abort it.
        """
        state = self._state
        outcome = request.outcome or Outcome.CANCELLED
        found = state.table.index.call(request.call_id, request.tenant)
        if found is None:
            parts = call_parts(request.call_id)
            if parts is None or ProgramKey(request.tenant, parts[0]) not in state.table.rows:
                raise NotFoundError("CALL_NOT_FOUND", f"no call {request.call_id!r}", field="call_id")
            return
        row, call = found
        if call.exchange:
            return
        if request.if_unseen:
            asyncio.get_running_loop().call_later(EXCHANGE_OVER_S, self._end_unseen, call.call_id, outcome)
            return
        answered = _answered(call, request)
        self.passed_over(call, answered)
        state.table.end_exchange(row, call, outcome, answered)
        if request.never_started or self._is_settled(call, request):
            self._end(row, call, outcome)
            return
        if outcome is not Outcome.COMPLETED:
            for engine_id in tries.named(call):
                state.links.send(engine_id, CancelCalls((call.call_id,)))
        self._later(EXCHANGE_OVER_S, call.call_id)
        state.settle()

    def passed_on(self, tenant: Tenant, call_ids: Iterable[str]) -> None:
        """The answers of these calls were passed on whole, as planned. Most have ended by a report."""
        for call_id in call_ids:
            if self._state.table.index.call(CallId(call_id), tenant) is not None:
                self.end(EndOfCall(tenant=tenant, call_id=CallId(call_id), outcome=Outcome.COMPLETED))

    @staticmethod
    def _is_settled(call: CallRow, request: EndOfCall) -> bool:
        """True when no report is to be expected that says more."""
        if tries.is_over(call):
            return bool(request.engine_id or request.tries)
        return request.outcome is Outcome.REJECTED and not call.boot_id

    # -- tries ---------------------------------------------------------------------------------------------------

    def passed_over(self, call: CallRow, engine_id: EngineId) -> None:
        """`engine_id` has the call: that the engines before it do not is evidence against them."""
        now = self._state.now()
        for each in tries.passed_over(call, engine_id):
            self._state.engines.call_failed(each, now.steady_us, admit_us=call.admit_us)

    def try_failed(self, call_id: CallId) -> None:
        """A try has ended without an answer, and the call may go on elsewhere."""
        self._later(NEXT_TRY_S, call_id)

    # -- timers --------------------------------------------------------------------------------------------------

    def _later(self, delay_s: float, call_id: CallId) -> None:
        asyncio.get_running_loop().call_later(delay_s, self._end_silent, call_id)

    def _end_silent(self, call_id: CallId) -> None:
        """Runs as a timer: ends a call of which nothing more can be expected."""
        key = self._state.table.index.calls.get(call_id)
        if key is None or self._state.commits.fenced is not None:
            return
        row = self._state.table.index.rows[key]
        call = row.calls[call_id]
        if tries.is_over(call):
            self._end(row, call, call.exchange or call.failed[call.engine_id] or Outcome.FAILED)
        elif call.exchange and (call.exchange is not Outcome.COMPLETED or not call.boot_id):
            log.warning("no final report of a call whose exchange is over", call=call_id, engine=call.engine_id)
            self._end(row, call, call.exchange)

    def _end_unseen(self, call_id: CallId, outcome: Outcome) -> None:
        """Runs as a timer: ends a call of which no engine and no one else has said anything."""
        key = self._state.table.index.calls.get(call_id)
        if key is None or self._state.commits.fenced is not None:
            return
        row = self._state.table.index.rows[key]
        call = row.calls[call_id]
        if not (call.boot_id or call.exchange or call.failed):
            self._end(row, call, outcome)

    def _end(self, row: ProgramRow, call: CallRow, outcome: Outcome) -> None:
        state, now = self._state, self._state.now()
        if not tries.is_over(call):
            state.engines.call_ended(call.engine_id, row.root_key, outcome, now.steady_us, call.boot_id, call.admit_us)
        state.table.end_call(row.key, call.call_id, outcome, now)
        state.settle()


def _answered(call: CallRow, request: EndOfCall) -> EngineId:
    """The engine that had the call last, as far as the request says."""
    if request.engine_id in call.engines:
        return request.engine_id
    if 0 < request.tries <= len(call.engines):
        return call.engines[request.tries - 1]
    return call.engine_id
