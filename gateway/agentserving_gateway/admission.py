"""The gateway's open stream to the control plane.

Admissions are matched by stream id. While another control plane takes the lead, calls wait for it up to AWAY_WAIT_S.
When all are away for longer, or silent, calls are served all the same: on the last known engines, by rendezvous hashing
of the program id, without a ticket, and counted as unmanaged.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from agentserving.transport.leader_channel import FIRST_ANSWER_S, LeaderChannel
from agentserving.v1 import call_service_pb2 as pb
from agentserving.v1 import call_service_pb2_grpc as rpc
from agentserving.v1 import types_pb2

from agentserving_gateway import metrics
from agentserving_gateway.errors import HttpError, from_admission
from agentserving_gateway.identity import Identity
from agentserving_gateway.known_engines import KnownEngines

log = structlog.get_logger()

ADMIT_DEADLINE_S = 1.0
# From when the leader is lost: another one leads within a lease (5 s) and three seconds. Who comes later does not wait.
AWAY_WAIT_S = 8.0
# Engines attach to a new leader within this time; until then it has none to choose.
SETTLING_S, ASK_AGAIN_S = 3.0, 0.1
RECONNECT_S = 0.05


@dataclass(frozen=True, slots=True)
class Admitted:
    """Where a call goes. `ticket` is empty for an unmanaged one."""

    engine_id: str
    engine_address: str
    call_id: str = ""
    program_id: str = ""
    ticket: str = ""


class Admission:
    """One per gateway process."""

    def __init__(self, leader: LeaderChannel, known: KnownEngines | None = None) -> None:
        self._leader = leader
        self._stream: grpc.aio.StreamStreamCall | None = None  # type: ignore[type-arg]
        self._waiting: dict[int, asyncio.Future[pb.AdmissionsResponse]] = {}
        self._next = 0
        self._known = known or KnownEngines(None)
        self._engines = self._known.load()
        self._task: asyncio.Task[None] | None = None
        self._outgoing: asyncio.Queue[pb.AdmissionsRequest] = asyncio.Queue()
        self._there = asyncio.Event()
        self._said = ""
        # Loop time: until when calls wait for a leader; until when one has to find its engines.
        self._wait_until = 0.0
        self._settled_at = 0.0

    def start(self) -> None:
        """Begins to connect."""
        self._wait_until = asyncio.get_running_loop().time() + AWAY_WAIT_S
        self._task = asyncio.create_task(self._run(), name="admissions")

    async def close(self) -> None:
        """Ends the stream."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._leader.close()

    @property
    def connected(self) -> bool:
        """True while the stream is up."""
        return self._stream is not None

    @property
    def engines(self) -> list[types_pb2.Engine]:
        """Engines known last."""
        return self._engines

    @property
    def ready(self) -> bool:
        """True once calls have somewhere to go, or a leader has none and had the time to be told of them."""
        settled = self._stream is not None and asyncio.get_running_loop().time() >= self._settled_at
        return bool(self._engines) or settled

    async def _run(self) -> None:
        while True:
            error: Exception | None = None
            try:
                await self._converse()
            except (grpc.aio.AioRpcError, OSError) as caught:
                # OSError: no answer in time, or a certificate that cannot be read.
                error = caught
                self._say(caught)
            finally:
                self._lose()
            await asyncio.sleep(max(RECONNECT_S, await self._leader.failed(error)))

    def _say(self, error: Exception) -> None:
        """Once, not at each try."""
        told = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error) or "it says nothing"
        said, self._said = self._said, f"{self._leader.address}: {told}"
        if said != self._said:
            log.warning("no leader here", address=self._leader.address, error=told)

    async def _converse(self) -> None:
        """One stream, until it ends."""
        stream: Any = rpc.CallServiceStub(await self._leader.channel()).Admissions()
        self._outgoing = asyncio.Queue()
        self._outgoing.put_nowait(pb.AdmissionsRequest(hello=pb.GatewayHello(gateway_id=uuid.uuid4().hex)))
        writer = asyncio.create_task(self._write(stream, self._outgoing))
        try:
            # It tells its engines at once.
            async with asyncio.timeout(FIRST_ANSWER_S):
                response = await stream.read()
            while response is not grpc.aio.EOF:
                if self._stream is None:
                    self._find(stream)
                self._take(response)
                response = await stream.read()
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            stream.cancel()

    def _find(self, stream: Any) -> None:
        self._leader.found()
        log.info("leader found", address=self._leader.address)
        self._stream = stream
        self._settled_at = asyncio.get_running_loop().time() + SETTLING_S
        self._there.set()

    def _lose(self) -> None:
        if self._stream is not None:
            self._wait_until = asyncio.get_running_loop().time() + AWAY_WAIT_S
        self._stream = None
        self._there.clear()
        for future in self._waiting.values():
            future.cancel()
        self._waiting.clear()

    async def _write(self, stream: Any, outgoing: asyncio.Queue[pb.AdmissionsRequest]) -> None:
        while True:
            await stream.write(await outgoing.get())

    def _take(self, response: pb.AdmissionsResponse) -> None:
        if response.WhichOneof("response") == "engines":
            # A new leader has none until they attach: calls that cannot wait for that go to those that were.
            self._engines = list(response.engines.engines) or self._engines
            self._known.keep(self._engines)
            return
        future = self._waiting.pop(response.stream_id, None)
        if future is not None and not future.done():
            future.set_result(response)

    async def admit(
        self, identity: Identity, tenant: str, prompt_tokens: int, *, retry_of: str = "", exclude: tuple[str, ...] = ()
    ) -> Admitted:
        """The engine for a call. HttpError when the control plane refuses; never because it is away."""
        request = pb.AdmitCallRequest(
            program_id=identity.program_id,
            thread_id=identity.thread_id,
            parent_call_ids=identity.parent_call_ids,
            implicit=True,
            name=identity.name,
            parent_program_id=identity.parent_program_id,
            prompt_tokens=prompt_tokens,
            final=identity.final,
            tenant=tenant,
            retry_of_call_id=retry_of,
            exclude_engine_ids=exclude,
        )
        give_up_at = asyncio.get_running_loop().time() + AWAY_WAIT_S
        while await self._leads() and asyncio.get_running_loop().time() < give_up_at:
            response = await self._ask(request)
            if response is None:
                if self._stream is not None:
                    # It is there and silent.
                    break
                continue
            if response.WhichOneof("response") == "error":
                if await self._passes(response.error):
                    continue
                refusal = response.error
                raise from_admission(
                    refusal.code, refusal.reason, refusal.message, refusal.retry_after.ToMilliseconds() / 1000
                )
            told = response.admitted
            return Admitted(told.engine_id, told.engine_address, told.call_id, told.program_id, told.ticket)
        return self._fallback(identity, exclude)

    async def _leads(self) -> bool:
        """True once a leader is there; False when it has been away for too long."""
        if self._stream is not None:
            return True
        left = self._wait_until - asyncio.get_running_loop().time()
        if left <= 0:
            return False
        try:
            await asyncio.wait_for(self._there.wait(), left)
        except TimeoutError:
            return False
        return True

    async def _passes(self, refusal: pb.AdmissionError) -> bool:
        """True for a refusal of one who leads no more, or not for long: it has been waited for what may change it."""
        new = refusal.reason == "NO_ENGINE" and asyncio.get_running_loop().time() < self._settled_at
        if refusal.reason == "NOT_LEADER" or new:
            await asyncio.sleep(ASK_AGAIN_S)
            return True
        return False

    async def _ask(self, request: pb.AdmitCallRequest) -> pb.AdmissionsResponse | None:
        """None when no answer came in time, or never will."""
        self._next += 1
        stream_id = self._next
        future: asyncio.Future[pb.AdmissionsResponse] = asyncio.get_running_loop().create_future()
        self._waiting[stream_id] = future
        self._outgoing.put_nowait(pb.AdmissionsRequest(stream_id=stream_id, admit=request))
        try:
            return await asyncio.wait_for(future, ADMIT_DEADLINE_S)
        except (TimeoutError, asyncio.CancelledError):
            self._waiting.pop(stream_id, None)
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return None

    def ended(self, call_id: str, outcome: types_pb2.Outcome.ValueType, *, never_started: bool) -> None:
        """Tells that no engine will report this call; best effort, expiry does the rest."""
        if call_id and self._stream is not None:
            end = pb.EndCallRequest(call_id=call_id, outcome=outcome, never_started=never_started)
            with contextlib.suppress(asyncio.QueueFull):
                self._outgoing.put_nowait(pb.AdmissionsRequest(stream_id=0, end=end))

    def _fallback(self, identity: Identity, exclude: tuple[str, ...]) -> Admitted:
        engines = [e for e in self._engines if e.engine_id not in exclude]
        if not engines:
            raise HttpError(
                503,
                "no engine is known: the control plane has not been reached yet",
                "server_error",
                "no_engine",
                retry_after_s=1.0,
            )
        metrics.UNMANAGED.inc()
        key = identity.program_id or uuid.uuid4().hex
        chosen = max(engines, key=lambda e: hashlib.blake2b(f"{key}\x00{e.engine_id}".encode(), digest_size=8).digest())
        return Admitted(chosen.engine_id, chosen.address, program_id=identity.program_id)
