"""The gateway's stream to the leading control plane: admissions and ends of calls. The one module with protobuf.

Answers are matched to requests by stream id. An admission that arrives after its client left, or after
the deadline, is ended immediately. Ends are repeated on the next stream until a leader has
acknowledged them, since the table survives a change of leader and with it the call.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from agentserving.contract.budgets import Budget, BudgetState
from agentserving.contract.ids import CallId, EngineId, ProgramId, Tenant
from agentserving.contract.rates import Rate
from agentserving.transport.leader_channel import LeaderChannel
from agentserving.v1 import call_service_pb2 as pb
from agentserving.v1 import call_service_pb2_grpc as rpc
from agentserving.v1 import types_pb2
from agentserving_process.leader_stream import Framed, LeaderStream

from agentserving_gateway import metrics
from agentserving_gateway.calls import Admitted, CallRequest, Ending, EndOfCall, Refusal
from agentserving_gateway.deadlines import Deadlines
from agentserving_gateway.engines import Engine

# Engines that Envoy may try after the chosen one.
MAX_FALLBACKS = 2
# Messages about ends that no leader has acknowledged: beyond this the oldest are left to expire in the table.
MAX_UNACKNOWLEDGED = 5_000
# Requests in one message: the leader decides them in some 4 ms, in which it does nothing else.
MAX_TOGETHER = 32

_OUTCOMES = {
    Ending.COMPLETED: types_pb2.OUTCOME_COMPLETED,
    Ending.CANCELLED: types_pb2.OUTCOME_CANCELLED,
    Ending.FAILED: types_pb2.OUTCOME_FAILED,
    Ending.REJECTED: types_pb2.OUTCOME_REJECTED,
}

Answer = Admitted | Refusal


class Listener(Protocol):
    """Receives changes of the leader and its engines."""

    def found(self) -> None:
        """A leader answers."""

    def lost(self) -> None:
        """It does not answer any more, or the one that was tried does not lead."""

    def engines(self, engines: list[Engine]) -> None:
        """The leader's engines, all of them."""


class Leader:
    """Admits and ends calls at the current leader; `run` is its supervised task. Implements StreamEvents."""

    def __init__(self, channel: LeaderChannel, listener: Listener) -> None:
        self._listener = listener
        self._stream: LeaderStream[pb.AdmissionsRequest, pb.AdmissionsResponse] = LeaderStream(
            "admissions",
            channel,
            lambda to: rpc.CallServiceStub(to).Admissions(metadata=channel.metadata()),
            self,
            framed=Framed("/agentserving.v1.CallService/Admissions", pb.AdmissionsResponse),
            take=self._take,
        )
        # The current leader reads several requests in one message.
        self._reads_more = False
        self._last_id = 0
        # An entry stays until its answer comes: a future that is done by then was abandoned.
        self._waiting: dict[int, tuple[asyncio.Future[Answer | None], Tenant]] = {}
        self._deadlines = Deadlines()
        self._ends: dict[int, pb.AdmissionsRequest] = {}
        # Set when an end was acknowledged, or when none will be.
        self._acknowledged = asyncio.Event()

    async def run(self) -> None:
        """Keeps a stream to the leader until it is cancelled."""
        await self._stream.run()

    @property
    def is_connected(self) -> bool:
        """True while a leader answers."""
        return self._stream.is_connected

    async def admit(self, request: CallRequest, deadline_s: float) -> Answer | None:
        """The leader's answer; None when there is no leader, or none that answers within the deadline.

        However the wait ends, an admission that is not returned is ended.
        """
        if not self._stream.is_connected:
            return None
        self._last_id += 1
        future: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._waiting[self._last_id] = future, request.tenant
        if not self._stream.send(pb.AdmissionsRequest(stream_id=self._last_id, admit=_admit_message(request))):
            del self._waiting[self._last_id]
            return None
        self._deadlines.watch(future, deadline_s)
        try:
            return await future
        except asyncio.CancelledError:
            self._abandon(future)
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return None  # the stream broke

    def _abandon(self, future: asyncio.Future[Answer | None]) -> None:
        """The answer may have come in the same turn of the loop as the end of the wait."""
        if future.done() and not future.cancelled():
            answer = future.result()
            if isinstance(answer, Admitted):
                self.end(_never_sent(answer))

    def end(self, end: EndOfCall) -> None:
        """Ends an admitted call that no engine is sure to report: now, or once there is a leader again."""
        metrics.ENDED.labels(end.ending.value).inc()
        self._last_id += 1
        message = pb.EndCallRequest(
            call_id=end.call_id,
            outcome=_OUTCOMES[end.ending],
            never_started=end.never_started,
            tenant=end.tenant,
            engine_id=end.engine_id,
            tries=end.tries,
            if_unseen=end.if_unseen,
        )
        self._send_end(pb.AdmissionsRequest(stream_id=self._last_id, end=message))

    def passed_on(self, tenant: Tenant, call_ids: Iterable[CallId]) -> None:
        """Exchanges that went as planned. Nearly all of these calls have been reported by their engine."""
        self._last_id += 1
        over = pb.ExchangesOver(call_ids=call_ids, tenant=tenant)
        self._send_end(pb.AdmissionsRequest(stream_id=self._last_id, over=over))

    def _send_end(self, request: pb.AdmissionsRequest) -> None:
        self._ends[request.stream_id] = request
        if len(self._ends) > MAX_UNACKNOWLEDGED:
            del self._ends[next(iter(self._ends))]
        self._stream.send(request)

    async def flush(self, bound_s: float) -> None:
        """Waits until the leader has acknowledged all ends; at most `bound_s`, and not for a leader that is lost."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(bound_s):
                while self._ends and self.is_connected:
                    self._acknowledged.clear()
                    await self._acknowledged.wait()

    def _take(self, waiting: deque[pb.AdmissionsRequest]) -> pb.AdmissionsRequest:
        """The next message to the leader: all requests that wait, up to MAX_TOGETHER."""
        if len(waiting) == 1 or not self._reads_more:
            return waiting.popleft()
        return pb.AdmissionsRequest(more=[waiting.popleft() for _ in range(min(len(waiting), MAX_TOGETHER))])

    # -- StreamEvents --------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """There is always something to say."""

    def greeting(self) -> list[pb.AdmissionsRequest]:
        """The hello, and the ends that no leader has acknowledged."""
        self._reads_more = False
        return [_HELLO, *self._ends.values()]

    def connected(self) -> None:
        """A leader answers."""
        self._listener.found()

    def lost(self) -> None:
        """The stream is over: waiting calls ask the next leader."""
        waiting, self._waiting = self._waiting, {}
        for future, _ in waiting.values():
            future.cancel()
        self._acknowledged.set()
        self._listener.lost()

    def received(self, response: pb.AdmissionsResponse) -> None:
        """One message of the leader."""
        for each in response.more:
            self._answered(each)
        kind = response.WhichOneof("response")
        if kind == "engines":
            self._reads_more = response.engines.reads_more
            self._listener.engines([_engine(engine) for engine in response.engines.engines])
        elif kind is not None:
            self._answered(response)

    def _answered(self, response: pb.AdmissionsResponse) -> None:
        kind, stream_id = response.WhichOneof("response"), response.stream_id
        if stream_id in self._ends:
            # An error is NOT_FOUND, for instance: the call is over. From a former leader it means nothing.
            if kind == "ended" or response.error.reason != "NOT_LEADER":
                del self._ends[stream_id]
                self._acknowledged.set()
            return
        future, tenant = self._waiting.pop(stream_id, (None, Tenant("")))
        answer = _admitted(response.admitted, tenant) if kind == "admitted" else _refusal(response.error)
        if future is not None and not future.done():
            future.set_result(answer)
        elif isinstance(answer, Admitted):
            self.end(_never_sent(answer))


def _never_sent(call: Admitted) -> EndOfCall:
    return EndOfCall(call_id=call.call_id, tenant=call.tenant, ending=Ending.CANCELLED, never_started=True)


_HELLO = pb.AdmissionsRequest(hello=pb.GatewayHello(reads_more=True))


def _admit_message(request: CallRequest) -> pb.AdmitCallRequest:
    return pb.AdmitCallRequest(
        program_id=request.program_id,
        thread_id=request.thread_id,
        parent_call_ids=request.parent_call_ids,
        implicit=True,
        name=request.program_name,
        parent_program_id=request.parent_program_id,
        prompt_tokens=request.prompt_tokens,
        model=request.model,
        final=request.final,
        tenant=request.tenant,
        retry_of_call_id=request.retry_of_call_id,
        exclude_engine_ids=request.exclude,
        max_fallbacks=MAX_FALLBACKS,
        gateway_us=round((time.monotonic() - request.received_s) * 1e6) if request.received_s else 0,
        trace_parent=request.trace_parent,
        hold_id=request.hold_id,
        held_us=round(request.held_s * 1e6),
        budget=_budget_message(request.budget) if request.budget else None,
        service_class=types_pb2.ServiceClass.ValueType(request.service_class),
        service_class_limit=types_pb2.ServiceClass.ValueType(request.service_class_limit),
    )


def _admitted(message: pb.AdmitCallResponse, tenant: Tenant) -> Admitted:
    return Admitted(
        engine_id=EngineId(message.engine_id),
        engine_address=message.engine_address,
        fallbacks=tuple(engine.address for engine in message.fallbacks),
        tenant=tenant,
        call_id=CallId(message.call_id),
        program_id=ProgramId(message.program_id),
        ticket=message.ticket,
        rates=_rates(message.rates) if message.rates else (),
        budget=_budget_state(message.budget) if message.HasField("budget") else None,
    )


def _refusal(message: pb.AdmissionError) -> Refusal:
    return Refusal(
        code=message.code,
        reason=message.reason,
        message=message.message,
        retry_after_s=message.retry_after.ToMilliseconds() / 1000,
        rates=_rates(message.rates),
        budget=_budget_state(message.budget) if message.HasField("budget") else None,
    )


def _budget_message(budget: Budget) -> types_pb2.Budget:
    return types_pb2.Budget(tokens=budget.tokens, engine_us=budget.engine_us, calls=budget.calls)


def _budget_state(message: types_pb2.BudgetState) -> BudgetState:
    return BudgetState(limit=_budget(message.limit), spent=_budget(message.spent))


def _budget(message: types_pb2.Budget) -> Budget:
    return Budget(tokens=message.tokens, engine_us=message.engine_us, calls=message.calls)


def _rates(messages: Iterable[pb.Rate]) -> tuple[Rate, ...]:
    return tuple(Rate(each.unit, each.limit, each.remaining, each.reset.ToMilliseconds() / 1000) for each in messages)


def _engine(message: types_pb2.Engine) -> Engine:
    return Engine(
        EngineId(message.engine_id),
        message.address,
        message.state == types_pb2.ENGINE_STATE_READY,
        frozenset(message.capabilities.models),
    )
