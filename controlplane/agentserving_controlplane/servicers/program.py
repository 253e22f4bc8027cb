"""ProgramService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from agentserving.v1 import program_service_pb2 as pb
from agentserving.v1 import program_service_pb2_grpc as rpc
from agentserving.v1 import types_pb2

from agentserving_controlplane.control_plane import ControlPlane, now_us
from agentserving_controlplane.errors import GoneError, InvalidError
from agentserving_controlplane.process_table import ACTIVE, CLOSED, COMPLETED, FAILED, TOOL_WAIT
from agentserving_controlplane.servicers.common import tenant_of, unary
from agentserving_controlplane.status_codes import abort


class ProgramServicer(rpc.ProgramServiceServicer):
    """Translates; ControlPlane decides."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def _landed(self) -> None:
        await self._plane.commits.durable(self._plane.settle())

    @unary
    async def OpenProgram(self, request: pb.OpenProgramRequest, tenant: str) -> pb.OpenProgramResponse:
        """Durable before it answers."""
        row = self._plane.table.open(
            tenant,
            request.program_id,
            now_us(),
            name=request.name,
            parent=request.parent_program_id,
            key=request.idempotency_key,
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
        self._plane.table.close(row, outcome, now_us())
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
        wanted = set(request.states)
        rows = sorted(
            (
                row
                for (owner, program_id), row in self._plane.table.rows.items()
                if owner == tenant
                and program_id > request.page_token
                and (row.state in wanted if wanted else row.state != CLOSED)
            ),
            key=lambda row: row.program_id,
        )
        size = request.page_size or 100
        more = rows[size - 1].program_id if len(rows) > size else ""
        return pb.ListProgramsResponse(
            programs=[self._plane.describe(row) for row in rows[:size]],
            next_page_token=more,
            revision=self._plane.revision,
        )

    async def WatchPrograms(
        self, request: pb.WatchProgramsRequest, context: Any
    ) -> AsyncIterator[pb.WatchProgramsResponse]:
        """Changes after a revision, from a bounded history."""
        plane, tenant = self._plane, tenant_of(context)
        seen = request.after_revision or plane.revision
        if seen < plane.revision and (not plane.history or plane.history[0][0] > seen + 1):
            await abort(context, GoneError("REVISION_COMPACTED", f"revision {seen} is no longer kept: list again"))
        wake = asyncio.Event()
        plane.listeners.add(wake.set)
        try:
            while True:
                wake.clear()
                changed = {
                    program_id: removed
                    for revision, owner, program_id, removed in plane.history
                    if revision > seen and owner == tenant and request.program_id in ("", program_id)
                }
                seen = plane.revision
                live = [plane.table.rows.get((tenant, p)) for p, removed in changed.items() if not removed]
                if changed:
                    yield pb.WatchProgramsResponse(
                        revision=seen,
                        changed=[plane.describe(row) for row in live if row is not None],
                        removed_program_ids=[p for p, removed in changed.items() if removed],
                    )
                await wake.wait()
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
        self._plane.pause(row, True)
        await self._landed()
        return pb.PauseProgramResponse(program=self._plane.describe(row))

    @unary
    async def ResumeProgram(self, request: pb.ResumeProgramRequest, tenant: str) -> pb.ResumeProgramResponse:
        """Let go."""
        row = self._plane.table.find(tenant, request.program_id)
        self._plane.pause(row, False)
        await self._landed()
        return pb.ResumeProgramResponse(program=self._plane.describe(row))

    @unary
    async def BeginToolWait(self, request: pb.BeginToolWaitRequest, tenant: str) -> pb.BeginToolWaitResponse:
        """Not durable: a hint."""
        if request.expected_us < 0:
            raise InvalidError("NEGATIVE", "expected_us must not be negative", field="expected_us")
        self._plane.table.set_state(self._plane.table.find(tenant, request.program_id), TOOL_WAIT)
        self._plane.settle()
        return pb.BeginToolWaitResponse()

    @unary
    async def EndToolWait(self, request: pb.EndToolWaitRequest, tenant: str) -> pb.EndToolWaitResponse:
        """Back to work."""
        row = self._plane.table.find(tenant, request.program_id)
        if row.state == TOOL_WAIT:
            self._plane.table.set_state(row, ACTIVE)
            self._plane.settle()
        return pb.EndToolWaitResponse()


__all__ = ["ProgramServicer", "types_pb2"]
