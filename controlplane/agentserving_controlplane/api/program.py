"""ProgramService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from agentserving.v1 import program_service_pb2 as pb
from agentserving.v1 import program_service_pb2_grpc as rpc

from agentserving_controlplane.api.common import tenant_of, unary
from agentserving_controlplane.api.status_codes import abort
from agentserving_controlplane.control_plane import ControlPlane, now_us
from agentserving_controlplane.errors import DomainError, InvalidError
from agentserving_controlplane.table.admission_keys import digest
from agentserving_controlplane.table.process_table import COMPLETED, FAILED, TOOL_WAIT
from agentserving_controlplane.table.programs import PROGRAM_ID


class ProgramServicer(rpc.ProgramServiceServicer):
    """Translates; ControlPlane decides."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def _landed(self) -> None:
        await self._plane.commits.durable(self._plane.settle())

    @unary
    async def OpenProgram(self, request: pb.OpenProgramRequest, tenant: str) -> pb.OpenProgramResponse:
        """Durable before it answers."""
        self._plane.check_room()
        row = self._plane.table.open(
            tenant,
            request.program_id,
            now_us(),
            name=request.name,
            parent=request.parent_program_id,
            key=request.idempotency_key,
            request=digest(request) if request.idempotency_key else "",
        )
        await self._landed()
        return pb.OpenProgramResponse(program=self._plane.describe(row))

    @unary
    async def CloseProgram(self, request: pb.CloseProgramRequest, tenant: str) -> pb.CloseProgramResponse:
        """Calls in flight finish."""
        row = self._plane.table.find(tenant, request.program_id)
        outcome = request.outcome or COMPLETED
        if outcome not in (COMPLETED, FAILED):
            raise InvalidError("BAD_OUTCOME", "outcome: COMPLETED or FAILED", field="outcome")
        self._plane.close(row, outcome, now_us())
        await self._landed()
        return pb.CloseProgramResponse(program=self._plane.describe(row))

    @unary
    async def GetProgram(self, request: pb.GetProgramRequest, tenant: str) -> pb.GetProgramResponse:
        """One row."""
        return pb.GetProgramResponse(program=self._plane.describe(self._plane.table.find(tenant, request.program_id)))

    @unary
    async def ListPrograms(self, request: pb.ListProgramsRequest, tenant: str) -> pb.ListProgramsResponse:
        """Ordered by id; the page token is the last id seen."""
        if request.page_size > 1000:
            raise InvalidError("PAGE_TOO_LARGE", "page_size: at most 1000", field="page_size")
        wanted: set[int] = set(request.states)
        if request.page_token and PROGRAM_ID.fullmatch(request.page_token) is None:
            raise InvalidError("BAD_PAGE_TOKEN", "page_token: as a page before gave it", field="page_token")
        revision = self._plane.revision
        rows, more = self._plane.table.page(tenant, request.page_token, request.page_size or 100, wanted)
        return pb.ListProgramsResponse(
            programs=[self._plane.describe(row) for row in rows], next_page_token=more, revision=revision
        )

    async def WatchPrograms(
        self, request: pb.WatchProgramsRequest, context: Any
    ) -> AsyncIterator[pb.WatchProgramsResponse]:
        """Changes after a revision, from a bounded history."""
        plane = self._plane
        seen = request.after_revision or plane.revision
        wake = asyncio.Event()
        plane.listeners.add(wake.set)
        try:
            tenant = tenant_of(context)
            while True:
                wake.clear()
                # One that reads slowly is asked to list again rather than given a gap.
                changed = plane.history.after(seen, tenant, request.program_id)
                seen = plane.revision
                live = [plane.table.rows.get((tenant, p)) for p, removed in changed.items() if not removed]
                if changed:
                    yield pb.WatchProgramsResponse(
                        revision=seen,
                        changed=[plane.describe(row) for row in live if row is not None],
                        removed_program_ids=[p for p, removed in changed.items() if removed],
                    )
                await wake.wait()
        except DomainError as error:
            await abort(context, error)
        finally:
            plane.listeners.discard(wake.set)

    @unary
    async def CancelProgram(self, request: pb.CancelProgramRequest, tenant: str) -> pb.CancelProgramResponse:
        """Children too."""
        row = self._plane.table.find(tenant, request.program_id)
        count = self._plane.cancel(row)
        await self._landed()
        return pb.CancelProgramResponse(program=self._plane.describe(row), calls_cancelled=count)

    @unary
    async def PauseProgram(self, request: pb.PauseProgramRequest, tenant: str) -> pb.PauseProgramResponse:
        """Held on every engine."""
        row = self._plane.table.find(tenant, request.program_id)
        self._plane.hold(row, True)
        await self._landed()
        return pb.PauseProgramResponse(program=self._plane.describe(row))

    @unary
    async def ResumeProgram(self, request: pb.ResumeProgramRequest, tenant: str) -> pb.ResumeProgramResponse:
        """Let go."""
        row = self._plane.table.find(tenant, request.program_id)
        self._plane.hold(row, False)
        await self._landed()
        return pb.ResumeProgramResponse(program=self._plane.describe(row))

    @unary
    async def BeginToolWait(self, request: pb.BeginToolWaitRequest, tenant: str) -> pb.BeginToolWaitResponse:
        """Not durable: a hint."""
        if request.expected_us < 0:
            raise InvalidError("NEGATIVE", "expected_us must not be negative", field="expected_us")
        self._plane.table.wait_for_tool(self._plane.table.find(tenant, request.program_id), True)
        self._plane.settle()
        return pb.BeginToolWaitResponse()

    @unary
    async def EndToolWait(self, request: pb.EndToolWaitRequest, tenant: str) -> pb.EndToolWaitResponse:
        """Back to work."""
        row = self._plane.table.find(tenant, request.program_id)
        if row.state == TOOL_WAIT:
            self._plane.table.wait_for_tool(row, False)
            self._plane.settle()
        return pb.EndToolWaitResponse()
