"""Which engine takes a call: the leader's choice, or the picker's own while no leader can be asked.

While another control plane takes the lead, calls wait for it up to AWAY_WAIT_S. When all are away for longer, or
silent, calls are served all the same: on the last known engines, by rendezvous hashing of the program id, without a
ticket, and counted as unmanaged. While there is no engine, calls wait for one where that is switched on (holding.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import replace

from agentserving.contract.ids import CallId, EngineId, ProgramId, Tenant
from agentserving.transport.leader_channel import LeaderChannel

from agentserving_gateway import metrics, spent_budgets
from agentserving_gateway.calls import Admitted, CallRequest, Ending, EndOfCall, Refusal
from agentserving_gateway.engines import Engine, Engines
from agentserving_gateway.engines_file import EnginesFile
from agentserving_gateway.errors import HttpError, from_refusal
from agentserving_gateway.holding import Holding
from agentserving_gateway.leader import MAX_FALLBACKS, Leader
from agentserving_gateway.own_tickets import OwnTickets
from agentserving_gateway.spent_budgets import SpentBudgets

ADMIT_DEADLINE_S = 1.0
# From the loss of the leader: another one leads within a lease (5 s) and three seconds. Later calls do not wait.
AWAY_WAIT_S = 8.0
# Engines attach to a new leader within SETTLING_S; until then it has none to choose.
SETTLING_S, ASK_AGAIN_S = 3.0, 0.1
# A request that is no call waits so long for an engine: it has only the question about the head. A leader, and then a
# gateway, learn a moment after the engine that it is ready.
READY_WAIT_S = 1.5
# Envoy reads a new engines file within some 15 ms.
IN_FORCE_S, IN_FORCE_POLL_S = 1.0, 0.005
# How long `close` waits for the last ends of calls to be acknowledged.
FLUSH_S = 1.0
# Refusals that excluded engines may have caused.
_FOR_WANT_OF_ENGINES = ("NO_ENGINE", "MODEL_NOT_FOUND")


class HoldError(Exception):
    """The call has to wait for a leader, or for its engines."""


class Admission:
    """One per gateway process; `run` is its supervised task."""

    def __init__(
        self,
        channel: LeaderChannel,
        file: EnginesFile,
        is_in_force: Callable[[str], Awaitable[bool]],
        own_tickets: OwnTickets | None = None,
        hold_s: float = 0.0,
        budget_hold_s: float = 0.0,
    ) -> None:
        """`is_in_force`: True once Envoy knows the engine at an address. `own_tickets`: for calls without a leader, and
        for requests that are no calls. `hold_s`: how long a call waits for an engine while there is none,
        `budget_hold_s`: how long while the budget of its program is spent."""
        self.holding, self.spent = Holding(hold_s), SpentBudgets(budget_hold_s)
        self._file, self._is_in_force = file, is_in_force
        self._engines = Engines(file.load())
        self._leader = Leader(channel, self)
        self._own_tickets = own_tickets
        self._there = asyncio.Event()
        # Monotonic: until when calls wait for a leader; until when a leader may still find its engines.
        self._wait_until = 0.0
        self._settled_at = 0.0

    async def run(self) -> None:
        """Keeps a stream to the leader until it is cancelled."""
        self._wait_until = _now() + AWAY_WAIT_S
        await self._leader.run()

    async def flush(self) -> None:
        """Waits until the leader has acknowledged the ends of all calls, FLUSH_S at most."""
        await self._leader.flush(FLUSH_S)

    # -- leader.Listener -----------------------------------------------------------------------------------------

    def found(self) -> None:
        """A leader answers."""
        self._settled_at = _now() + SETTLING_S
        self._there.set()

    def lost(self) -> None:
        """It does not answer any more."""
        if self._there.is_set():
            self._wait_until = _now() + AWAY_WAIT_S
        self._there.clear()

    def engines(self, engines: list[Engine]) -> None:
        """The leader's engines."""
        self._engines.replace(engines)
        self._file.save(engines)
        self.holding.engines_changed()

    # -- engines -------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """True while a leader answers."""
        return self._leader.is_connected

    @property
    def _settled(self) -> bool:
        return self.connected and _now() >= self._settled_at

    @property
    def ready(self) -> bool:
        """True once calls have somewhere to go, or a leader that had the time to find engines has none."""
        return bool(self._engines.known(settled=self._settled)) or self._settled

    @property
    def known_engines(self) -> list[Engine]:
        """Engines that the leader has named last, ready or not."""
        return self._engines.known(settled=self._settled)

    def ready_engines(self) -> list[Engine]:
        """Engines that take calls now."""
        return self._engines.ready(settled=self._settled)

    async def ready_engines_soon(self) -> list[Engine]:
        """As `ready_engines`; waits READY_WAIT_S at most while there is none."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_WAIT_S):
                while not self.ready_engines():
                    await self.holding.change()
        return self.ready_engines()

    @property
    def models_differ(self) -> bool:
        """True when engines serve different models: then a call's model decides where it may go."""
        return self._engines.models_differ(settled=self._settled)

    def others(self, model: str, chosen: str) -> list[Engine]:
        """Engines that may take a request when the one at address `chosen` fails."""
        ready = self._engines.ready(model, settled=self._settled)
        avoided = self._engines.avoided(_now())
        return [engine for engine in ready if engine.address != chosen and engine.engine_id not in avoided]

    def engine_at(self, address: str) -> Engine | None:
        return next((engine for engine in self.known_engines if engine.address == address), None)

    def engine_in_turn(self, model: str, exclude: Collection[EngineId]) -> Engine | None:
        """An engine for a request that is no call, round robin; None when none is ready."""
        return self._engines.in_turn(_now(), model, exclude=exclude, settled=self._settled)

    def ticket_to_read(self, tenant: Tenant, engines: Sequence[Engine]) -> str:
        """For a request that is no call, on any of these engines; "" when this gateway signs no tickets."""
        if self._own_tickets is None or not engines:
            return ""
        return self._own_tickets.ticket(tenant, ProgramId(""), [each.engine_id for each in engines], time.time())

    def avoid(self, engine_id: EngineId) -> None:
        """An engine has just failed: others are chosen for a few seconds, where there are others."""
        self._engines.avoid(engine_id, _now())

    def avoid_address(self, address: str) -> None:
        """As `avoid`, for the engine at an address."""
        engine = self.engine_at(address)
        if engine is not None:
            self.avoid(engine.engine_id)

    # -- calls ---------------------------------------------------------------------------------------------------

    async def admit(self, request: CallRequest, *, may_hold: bool = True) -> Admitted:
        """The engine for a call. HttpError when the leader refuses; never because it is away.

        Takes up to AWAY_WAIT_S while a leader is elected, and longer while there is no engine or the budget of its
        program is spent; HoldError instead when it must not be held.
        """
        began = _now()
        give_up_at = began + AWAY_WAIT_S
        avoided = self._engines.avoided(_now())
        if may_hold and (number := self.holding.number()):
            request = replace(request, hold_id=number)
        while await self._leader_is_there(may_hold, give_up_at) and _now() < give_up_at:
            exclude = (*request.exclude, *(avoided.difference(request.exclude)))
            asked = replace(request, exclude=exclude) if avoided else request
            answer = await self._leader.admit(asked, ADMIT_DEADLINE_S)
            if isinstance(answer, Admitted):
                try:
                    await self._in_force(answer)
                except asyncio.CancelledError:
                    self.end(
                        EndOfCall(
                            call_id=answer.call_id, tenant=answer.tenant, ending=Ending.CANCELLED, never_started=True
                        )
                    )
                    raise
                return answer
            if answer is None:
                if self.connected:
                    break  # it is there and silent
            elif avoided and answer.reason in _FOR_WANT_OF_ENGINES:
                avoided = frozenset()
            elif await self._may_change(answer, may_hold):
                continue
            elif answer.reason == "NO_ENGINE" and self.holding.limit_s and not request.exclude:
                if not may_hold:
                    raise HoldError
                await self.holding.wait(began, _now(), answer)
                # A leader that is lost meanwhile is waited for as by a new call.
                give_up_at = _now() + AWAY_WAIT_S
            elif answer.reason == spent_budgets.REASON and self.spent.limit_s:
                if not may_hold:
                    raise HoldError
                request = replace(request, held_s=await self.spent.wait(request.held_s, answer))
                give_up_at = _now() + AWAY_WAIT_S
            else:
                raise from_refusal(answer)
        return self._without_leader(request)

    async def _in_force(self, admitted: Admitted) -> None:
        """An engine that has just attached may be chosen before Envoy knows it: waits until it does."""
        address = admitted.engine_address
        if self._file.has(address):
            return
        new = Engine(admitted.engine_id, address)
        self._file.save([*(e for e in self.known_engines if e.engine_id != new.engine_id), new])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IN_FORCE_S):
                # Envoy does not say when it has read the file.
                while not await self._is_in_force(address):  # noqa: ASYNC110 - it does not tell
                    await asyncio.sleep(IN_FORCE_POLL_S)

    async def _leader_is_there(self, may_hold: bool, give_up_at: float) -> bool:
        """Waits for a leader; False when none has been there for too long, or not until `give_up_at`: one that comes
        and goes does not prolong the wait of a call."""
        if self._there.is_set():
            return True
        left = min(self._wait_until, give_up_at) - _now()
        if left <= 0:
            return False
        if not may_hold:
            raise HoldError
        try:
            async with asyncio.timeout(left):
                await self._there.wait()
        except TimeoutError:
            return False
        return True

    async def _may_change(self, refusal: Refusal, may_hold: bool) -> bool:
        """True for a former leader's refusal, or one whose engines still attach, after the time it takes to change."""
        is_new = refusal.reason == "NO_ENGINE" and _now() < self._settled_at
        if refusal.reason == "NOT_LEADER" or is_new:
            if not may_hold:
                raise HoldError
            await asyncio.sleep(ASK_AGAIN_S)
            return True
        return False

    def end(self, end: EndOfCall) -> None:
        """Ends an admitted call that no engine is sure to report."""
        self._leader.end(end)

    def passed_on(self, tenant: Tenant, call_ids: Iterable[CallId]) -> None:
        """The answers of these calls were passed on whole: those that no scheduler has seen end as well."""
        self._leader.passed_on(tenant, call_ids)

    def _without_leader(self, request: CallRequest) -> Admitted:
        key = request.program_id or uuid.uuid4().hex
        engine = self._engines.by_program(key, _now(), request.model, exclude=request.exclude, settled=self._settled)
        if engine is None:
            known = "no other engine is known" if request.exclude else "no engine is known"
            message = f"{known}: the control plane has not been reached yet; try again in a moment"
            raise HttpError(503, message, "server_error", "no_engine", retry_after_s=1.0)
        metrics.UNMANAGED.inc()
        others = self.others(request.model, engine.address)[:MAX_FALLBACKS]
        ticket = ""
        if self._own_tickets is not None:
            named = [each.engine_id for each in (engine, *others)]
            ticket = self._own_tickets.ticket(request.tenant, request.program_id, named, time.time())
        return Admitted(
            engine_id=engine.engine_id,
            engine_address=engine.address,
            fallbacks=tuple(other.address for other in others),
            ticket=ticket,
            tenant=request.tenant,
            program_id=request.program_id,
        )


def _now() -> float:
    # Not the loop's time: finding the running loop costs a system call.
    return time.monotonic()
