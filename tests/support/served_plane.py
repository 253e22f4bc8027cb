"""A control plane behind a real grpc.aio server on a store in memory, with engines that a test plays itself."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

import grpc
from agentserving.contract.signatures import signing_key
from agentserving.v1 import (
    admin_service_pb2_grpc,
    call_service_pb2,
    call_service_pb2_grpc,
    engine_service_pb2,
    engine_service_pb2_grpc,
    program_service_pb2,
    program_service_pb2_grpc,
    types_pb2,
)
from agentserving_controlplane.__main__ import add_services
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.engines.load_balancer import Balancer
from agentserving_controlplane.settings import PlaneSettings
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.store.port import Store
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status

KEY = signing_key(b"0123456789abcdef")
SETTINGS = PlaneSettings(ticket_keys=lambda: (KEY,), policy="plas", balancer=Balancer.LEAST_USED)


class Refusal:
    """A status with its details."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code, self.message = error.code(), error.details() or ""
        self.reason = self.field = ""
        self.retry_after_s = 0.0
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        for detail in status.details if status is not None else ():
            info, bad, retry = (
                error_details_pb2.ErrorInfo(),
                error_details_pb2.BadRequest(),
                error_details_pb2.RetryInfo(),
            )
            if detail.Unpack(info):
                self.reason = info.reason
            if detail.Unpack(bad):
                self.field = bad.field_violations[0].field
            if detail.Unpack(retry):
                self.retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()


async def refusal(call: Awaitable[Any]) -> Refusal:
    """How a call was refused; fails when it was not."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return Refusal(error)
    raise AssertionError(f"was not refused: {answer}")


async def until_end(stream: Any) -> None:
    """Reads a stream to its end; raises what it ends with."""
    while await stream.read() is not grpc.aio.EOF:
        pass


class PlayedEngine:
    """One Attach stream."""

    def __init__(self, stub: engine_service_pb2_grpc.EngineServiceStub) -> None:
        self.stream: Any = stub.Attach()

    async def say(self, **message: Any) -> None:
        """Sends one message."""
        await self.stream.write(engine_service_pb2.AttachRequest(**message))

    async def hello(self, engine_id: str = "e1", boot_id: str = "b1", **fields: Any) -> engine_service_pb2.Welcome:
        """Introduces itself; gives the welcome."""
        hello = engine_service_pb2.EngineHello(
            engine_id=engine_id, boot_id=boot_id, address="127.0.0.1:9", **fields
        )  # fmt: skip
        await self.say(hello=hello)
        return (await self.hear("welcome")).welcome

    async def hear(self, kind: str) -> engine_service_pb2.AttachResponse:
        """The next message of a kind (also a kind of directive)."""
        while (message := await self.stream.read()) is not grpc.aio.EOF:
            if kind in (message.WhichOneof("message"), message.directive.WhichOneof("directive")):
                found: engine_service_pb2.AttachResponse = message
                return found
        raise AssertionError(f"the stream ended with {await self.stream.code()} {await self.stream.details()}")

    async def report(self, admitted: call_service_pb2.AdmitCallResponse, seq: int = 0, **fields: Any) -> None:
        """Reports a call; waits for the acknowledgement when there is a `seq`."""
        given = {
            "call_id": admitted.call_id, "attempt": admitted.attempt, "program_id": admitted.program_id,
            "tenant": "default", "root_program_id": admitted.program_id, "boot_id": "b1", **fields,
        }  # fmt: skip
        report = engine_service_pb2.CallReport(**given)
        await self.say(report=engine_service_pb2.Report(seq=seq, calls=[report]))
        while seq and (await self.hear("ack")).ack.seq < seq:
            pass


class ServedPlane:
    """`async with`; `restart` is what a kill and a new process on the same store would be."""

    def __init__(self, store: Store | None = None, **settings: Any) -> None:
        self.store = store or MemoryStore()
        self.settings = replace(SETTINGS, **settings)

    async def _serve(self, port: int) -> None:
        self.plane = ControlPlane(self.settings, self.store, await self.store.acquire("t"), lambda error: None)
        await self.plane.recover(self.store)
        self.server = grpc.aio.server(options=[("grpc.max_receive_message_length", 16 << 20)])
        healthy = add_services(self.server, self.plane)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        await self.server.start()
        await healthy.set("", health_pb2.HealthCheckResponse.SERVING)

    async def __aenter__(self) -> ServedPlane:
        await self._serve(0)
        options = [("grpc.max_send_message_length", -1), ("grpc.initial_reconnect_backoff_ms", 20)]
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options)
        self.programs = program_service_pb2_grpc.ProgramServiceStub(self.channel)
        self.calls = call_service_pb2_grpc.CallServiceStub(self.channel)
        self.admin = admin_service_pb2_grpc.AdminServiceStub(self.channel)
        self.engine_service = engine_service_pb2_grpc.EngineServiceStub(self.channel)
        return self

    async def restart(self) -> None:
        """The process dies, and another one recovers from the store."""
        await self.server.stop(0)
        await self.plane.commits.close(0)
        await self._serve(self.port)
        await self.channel.channel_ready()

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.server.stop(0)
        await self.plane.commits.close(1)

    async def attach(self, engine_id: str = "e1", boot_id: str = "b1", **fields: Any) -> PlayedEngine:
        """An engine."""
        engine = PlayedEngine(self.engine_service)
        await engine.hello(engine_id, boot_id, **fields)
        return engine

    async def open(self, program_id: str, parent: str = "", **fields: Any) -> types_pb2.Program:
        """A program."""
        request = program_service_pb2.OpenProgramRequest(program_id=program_id, parent_program_id=parent, **fields)
        answer: program_service_pb2.OpenProgramResponse = await self.programs.OpenProgram(request)
        return answer.program

    async def admit(self, program_id: str, **fields: Any) -> call_service_pb2.AdmitCallResponse:
        """A call."""
        request = call_service_pb2.AdmitCallRequest(program_id=program_id, **fields)
        answer: call_service_pb2.AdmitCallResponse = await self.calls.AdmitCall(request)
        return answer

    async def get(self, program_id: str) -> types_pb2.Program:
        """A row."""
        request = program_service_pb2.GetProgramRequest(program_id=program_id)
        answer: program_service_pb2.GetProgramResponse = await self.programs.GetProgram(request)
        return answer.program
