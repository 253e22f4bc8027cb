"""ProgramService: messages to ProgramOperations and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

from agentserving.contract.ids import ProgramId, ProgramKey, Tenant
from agentserving.v1 import program_service_pb2 as pb
from agentserving.v1 import program_service_pb2_grpc as rpc
from agentserving.v1 import types_pb2

from agentserving_controlplane.api import conversion
from agentserving_controlplane.api.authentication import service_limit
from agentserving_controlplane.api.conversion import program_to_message
from agentserving_controlplane.api.servicing import server_stream, unary
from agentserving_controlplane.api.streams import MAX_WATCHERS, woken_by
from agentserving_controlplane.api.trace_conversion import trace_to_message
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.state import ProgramView

# A program may have 512 threads. Others are served after so long, and a page ends before it is larger.
SLICE_S = 0.002
PAGE_BYTES = 1 << 20


class ProgramServicer(rpc.ProgramServiceServicer):
    """See program_service.proto."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane, self._programs = plane, plane.programs

    @unary
    async def OpenProgram(self, request: pb.OpenProgramRequest, tenant: Tenant) -> pb.OpenProgramResponse:
        view = await self._programs.open(conversion.open_request(request, tenant, service_limit()))
        return pb.OpenProgramResponse(program=program_to_message(view))

    @unary
    async def CloseProgram(self, request: pb.CloseProgramRequest, tenant: Tenant) -> pb.CloseProgramResponse:
        view = await self._programs.close(_key(request, tenant), conversion.known_outcome(request.outcome))
        return pb.CloseProgramResponse(program=program_to_message(view))

    @unary
    async def GetProgram(self, request: pb.GetProgramRequest, tenant: Tenant) -> pb.GetProgramResponse:
        return pb.GetProgramResponse(program=program_to_message(self._programs.get(_key(request, tenant))))

    @unary
    async def ListPrograms(self, request: pb.ListProgramsRequest, tenant: Tenant) -> pb.ListProgramsResponse:
        states = conversion.states(list(request.states))
        page = self._programs.page(tenant, request.page_token, request.page_size, states)
        programs = await _messages(page.programs, PAGE_BYTES)
        is_cut = len(programs) < len(page.programs)
        token = programs[-1].program_id if is_cut else page.next_token
        return pb.ListProgramsResponse(programs=programs, next_page_token=token, revision=page.revision)

    @server_stream
    async def WatchPrograms(
        self, request: pb.WatchProgramsRequest, tenant: Tenant
    ) -> AsyncGenerator[pb.WatchProgramsResponse, None]:
        """Changes come from a bounded history: a client that reads too slowly must list again, but misses none."""
        seen = request.after_revision or self._plane.revision
        with woken_by(self._plane.listeners, MAX_WATCHERS) as wake:
            while True:
                wake.clear()
                changed = self._programs.changed(seen, tenant, ProgramId(request.program_id))
                seen = changed.revision
                if changed.programs or changed.removed:
                    yield pb.WatchProgramsResponse(
                        revision=seen,
                        changed=await _messages(changed.programs),
                        removed_program_ids=changed.removed,
                    )
                await wake.wait()

    @unary
    async def CancelProgram(self, request: pb.CancelProgramRequest, tenant: Tenant) -> pb.CancelProgramResponse:
        view, count = await self._programs.cancel(_key(request, tenant))
        return pb.CancelProgramResponse(program=program_to_message(view), calls_cancelled=count)

    @unary
    async def PauseProgram(self, request: pb.PauseProgramRequest, tenant: Tenant) -> pb.PauseProgramResponse:
        view = await self._programs.pause(_key(request, tenant))
        return pb.PauseProgramResponse(program=program_to_message(view))

    @unary
    async def ResumeProgram(self, request: pb.ResumeProgramRequest, tenant: Tenant) -> pb.ResumeProgramResponse:
        view = await self._programs.resume(_key(request, tenant), conversion.addition(request))
        return pb.ResumeProgramResponse(program=program_to_message(view))

    @unary
    async def BeginToolWait(self, request: pb.BeginToolWaitRequest, tenant: Tenant) -> pb.BeginToolWaitResponse:
        self._programs.begin_tool_wait(_key(request, tenant), request.thread_id, request.tool, request.expected_us)
        return pb.BeginToolWaitResponse()

    @unary
    async def EndToolWait(self, request: pb.EndToolWaitRequest, tenant: Tenant) -> pb.EndToolWaitResponse:
        self._programs.end_tool_wait(_key(request, tenant), request.thread_id)
        return pb.EndToolWaitResponse()

    @unary
    async def GetTrace(self, request: pb.GetTraceRequest, tenant: Tenant) -> pb.GetTraceResponse:
        return trace_to_message(self._programs.trace(_key(request, tenant)), self._plane.now().unix_us)


_Named = (
    pb.CloseProgramRequest
    | pb.GetProgramRequest
    | pb.CancelProgramRequest
    | pb.PauseProgramRequest
    | pb.ResumeProgramRequest
    | pb.BeginToolWaitRequest
    | pb.EndToolWaitRequest
    | pb.GetTraceRequest
)


def _key(request: _Named, tenant: Tenant) -> ProgramKey:
    return ProgramKey(tenant, ProgramId(request.program_id))


async def _messages(views: Sequence[ProgramView], limit_bytes: int = 0) -> list[types_pb2.Program]:
    """The programs as they are when each is reached; a change after the list's revision is in the next changes, too.

    Ends early, after the first that exceeds `limit_bytes` in all; 0 = no limit.
    """
    found: list[types_pb2.Program] = []
    size, began = 0, time.perf_counter()
    for view in views:
        found.append(program_to_message(view))
        size += found[-1].ByteSize()
        if limit_bytes and size > limit_bytes:
            break
        if time.perf_counter() - began > SLICE_S:
            await asyncio.sleep(0)
            began = time.perf_counter()
    return found
