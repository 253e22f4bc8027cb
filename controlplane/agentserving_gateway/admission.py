"""The gateway's open stream to the control plane.

Admissions are matched by stream id. When the control plane is away or silent, calls are served all the same: on the
last known engines, by rendezvous hashing of the program id, without a ticket, and counted as unmanaged.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
from dataclasses import dataclass

import grpc
import structlog
from agentserving.v1 import call_service_pb2 as pb
from agentserving.v1 import call_service_pb2_grpc as rpc
from agentserving.v1 import types_pb2

from agentserving_gateway import metrics
from agentserving_gateway.errors import HttpError, from_admission
from agentserving_gateway.identity import Identity
from agentserving_gateway.known_engines import KnownEngines

log = structlog.get_logger()

ADMIT_DEADLINE_S = 1.0
RECONNECT_FIRST_S, RECONNECT_MAX_S = 0.1, 2.0


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

    def __init__(self, channel: grpc.aio.Channel, known: KnownEngines | None = None) -> None:
        self._stub = rpc.CallServiceStub(channel)
        self._channel = channel
        self._stream: grpc.aio.StreamStreamCall | None = None  # type: ignore[type-arg]
        self._waiting: dict[int, asyncio.Future[pb.AdmissionsResponse]] = {}
        self._next = 0
        self._known = known or KnownEngines(None)
        self._engines = self._known.load()
        self._task: asyncio.Task[None] | None = None
        self._unsent: list[pb.AdmissionsRequest] = []
        self._outgoing: asyncio.Queue[pb.AdmissionsRequest] = asyncio.Queue()

    def start(self) -> None:
        """Begins to connect."""
        self._task = asyncio.create_task(self._run(), name="admissions")

    async def close(self) -> None:
        """Ends the stream."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._channel.close()

    @property
    def connected(self) -> bool:
        """True while the stream is up."""
        return self._stream is not None

    @property
    def engines(self) -> list[types_pb2.Engine]:
        """Engines known last."""
        return self._engines

    async def _run(self) -> None:
        delay = RECONNECT_FIRST_S
        while True:
            try:
                stream = self._stub.Admissions()
                hello = pb.GatewayHello(gateway_id=uuid.uuid4().hex)
                await stream.write(pb.AdmissionsRequest(hello=hello))
                writer = asyncio.create_task(self._write(stream))
                try:
                    while (response := await stream.read()) is not grpc.aio.EOF:
                        delay = RECONNECT_FIRST_S
                        self._stream = stream
                        self._take(response)
                finally:
                    writer.cancel()
                    stream.cancel()
            except grpc.aio.AioRpcError as error:
                log.warning("control plane away", error=error.details())
            finally:
                self._stream = None
                for future in self._waiting.values():
                    future.cancel()
                self._waiting.clear()
            await asyncio.sleep(delay)
            delay = min(delay * 2, RECONNECT_MAX_S)

    async def _write(self, stream: grpc.aio.StreamStreamCall) -> None:  # type: ignore[type-arg]
        while True:
            await stream.write(await self._outgoing.get())

    def _take(self, response: pb.AdmissionsResponse) -> None:
        if response.WhichOneof("response") == "engines":
            self._engines = list(response.engines.engines)
            self._known.keep(self._engines)
            return
        future = self._waiting.pop(response.stream_id, None)
        if future is not None and not future.done():
            future.set_result(response)

    async def admit(
        self, identity: Identity, tenant: str, prompt_tokens: int, *, retry_of: str = "", exclude: tuple[str, ...] = ()
    ) -> Admitted:
        """The engine for a call. HttpError when the control plane refuses; never because it is away."""
        if self._stream is None:
            return self._fallback(identity, exclude)
        self._next += 1
        future: asyncio.Future[pb.AdmissionsResponse] = asyncio.get_running_loop().create_future()
        self._waiting[self._next] = future
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
        stream_id = self._next
        self._outgoing.put_nowait(pb.AdmissionsRequest(stream_id=stream_id, admit=request))
        try:
            response = await asyncio.wait_for(future, ADMIT_DEADLINE_S)
        except (TimeoutError, asyncio.CancelledError):
            self._waiting.pop(stream_id, None)
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return self._fallback(identity, exclude)
        if response.WhichOneof("response") == "error":
            refusal = response.error
            raise from_admission(
                refusal.code, refusal.reason, refusal.message, refusal.retry_after.ToMilliseconds() / 1000
            )
        told = response.admitted
        return Admitted(told.engine_id, told.engine_address, told.call_id, told.program_id, told.ticket)

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
