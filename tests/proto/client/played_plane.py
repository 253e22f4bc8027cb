"""A control plane and an engine's sidecar, played over real gRPC: they record what a client sends."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from agentserving.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    call_service_pb2,
    call_service_pb2_grpc,
    program_service_pb2,
    program_service_pb2_grpc,
    types_pb2,
)
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

NOTHING_LISTENS = "127.0.0.1:9"


async def refuse(context: Any, code: grpc.StatusCode, reason: str, message: str = "no") -> None:
    """Aborts an RPC as the control plane does: with an ErrorInfo."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="agentserving"))
    status = status_pb2.Status(code=code.value[0], message=message, details=[detail])
    await context.abort_with_status(rpc_status.to_status(status))


@dataclass
class Plane(
    program_service_pb2_grpc.ProgramServiceServicer,
    call_service_pb2_grpc.CallServiceServicer,
    admin_service_pb2_grpc.AdminServiceServicer,
):
    """Admits each call to the first sidecar that is not excluded. `received`: every request."""

    sidecars: dict[str, str] = field(default_factory=dict)
    received: list[Any] = field(default_factory=list)
    refusal: tuple[grpc.StatusCode, str] | None = None
    overview: admin_service_pb2.GetOverviewResponse = field(default_factory=admin_service_pb2.GetOverviewResponse)
    program: types_pb2.Program = field(default_factory=types_pb2.Program)

    def of(self, kind: type[Any]) -> list[Any]:
        return [request for request in self.received if isinstance(request, kind)]

    async def _take(self, request: Any, context: Any) -> None:
        self.received.append(request)
        if self.refusal is not None:
            await refuse(context, *self.refusal)

    async def AdmitCall(self, request: Any, context: Any) -> call_service_pb2.AdmitCallResponse:
        await self._take(request, context)
        left = [name for name in self.sidecars if name not in request.exclude_engine_ids]
        if not left:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, "NO_ENGINE")
        number = len(self.of(call_service_pb2.AdmitCallRequest))
        program_id = request.program_id or f"anonymous-{number}"
        return call_service_pb2.AdmitCallResponse(
            call_id=f"{program_id}.1.{number}", program_id=program_id, engine_id=left[0], ticket="t",
            sidecar_address=self.sidecars[left[0]],
        )  # fmt: skip

    async def EndCall(self, request: Any, context: Any) -> call_service_pb2.EndCallResponse:
        await self._take(request, context)
        return call_service_pb2.EndCallResponse()

    async def OpenProgram(self, request: Any, context: Any) -> program_service_pb2.OpenProgramResponse:
        await self._take(request, context)
        return program_service_pb2.OpenProgramResponse(program=self.program)

    async def CloseProgram(self, request: Any, context: Any) -> program_service_pb2.CloseProgramResponse:
        await self._take(request, context)
        return program_service_pb2.CloseProgramResponse()

    async def GetProgram(self, request: Any, context: Any) -> program_service_pb2.GetProgramResponse:
        await self._take(request, context)
        return program_service_pb2.GetProgramResponse(program=self.program)

    async def CancelProgram(self, request: Any, context: Any) -> program_service_pb2.CancelProgramResponse:
        await self._take(request, context)
        return program_service_pb2.CancelProgramResponse(calls_cancelled=2)

    async def BeginToolWait(self, request: Any, context: Any) -> program_service_pb2.BeginToolWaitResponse:
        await self._take(request, context)
        return program_service_pb2.BeginToolWaitResponse()

    async def EndToolWait(self, request: Any, context: Any) -> program_service_pb2.EndToolWaitResponse:
        await self._take(request, context)
        return program_service_pb2.EndToolWaitResponse()

    async def DrainEngine(self, request: Any, context: Any) -> admin_service_pb2.DrainEngineResponse:
        await self._take(request, context)
        engine = types_pb2.Engine(engine_id=request.engine_id, state=types_pb2.ENGINE_STATE_DRAINING)
        return admin_service_pb2.DrainEngineResponse(engine=engine)

    async def UndrainEngine(self, request: Any, context: Any) -> admin_service_pb2.UndrainEngineResponse:
        await self._take(request, context)
        engine = types_pb2.Engine(engine_id=request.engine_id, state=types_pb2.ENGINE_STATE_READY)
        return admin_service_pb2.UndrainEngineResponse(engine=engine)

    async def GetOverview(self, request: Any, context: Any) -> admin_service_pb2.GetOverviewResponse:
        await self._take(request, context)
        return self.overview


@dataclass
class Sidecar(call_service_pb2_grpc.CallServiceServicer):
    """Answers every call with one status."""

    http_status: int = 200
    calls: list[str] = field(default_factory=list)

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[call_service_pb2.GenerateResponse]:
        self.calls.append(request.call_id)
        yield call_service_pb2.GenerateResponse(http_status=self.http_status, content_type="application/json")
        yield call_service_pb2.GenerateResponse(chunk=b"{}")


@contextlib.asynccontextmanager
async def served(servicer: Plane | Sidecar) -> AsyncIterator[str]:
    """Serves it; gives the address."""
    server = grpc.aio.server()
    call_service_pb2_grpc.add_CallServiceServicer_to_server(servicer, server)
    if isinstance(servicer, Plane):
        program_service_pb2_grpc.add_ProgramServiceServicer_to_server(servicer, server)
        admin_service_pb2_grpc.add_AdminServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
