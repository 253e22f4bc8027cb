"""One gateway's Admissions stream: requests are answered in order, and answers that are there together travel together.

Two tasks: one reads and decides, the other writes. No timer holds an answer back: the writer takes what was decided
while the message before was on its way, so a message carries more the busier the stream is.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import structlog
from agentserving.contract.ids import Tenant
from agentserving.v1 import call_service_pb2 as pb

from agentserving_controlplane.api import conversion
from agentserving_controlplane.api.servicing import EXPECTED_ERRORS, gateway_tenant
from agentserving_controlplane.api.status_codes import admission_error
from agentserving_controlplane.api.streams import Outlet
from agentserving_controlplane.control_plane import ControlPlane

log = structlog.get_logger()

# Answers in one message: some 20 kB.
MAX_TOGETHER = 32
# Answers that wait for a gateway which does not read. Beyond, its requests are not read either.
MAX_WAITING = 1000


class Admissions:
    """`read` and `write` run together until the stream ends."""

    def __init__(self, plane: ControlPlane, outlet: Outlet, tenant: Tenant | None) -> None:
        """`tenant`: of messages that name none; None = each must name its own."""
        self._plane, self._outlet, self._tenant = plane, outlet, tenant
        self._reads_more = False
        self._answers: list[pb.AdmissionsResponse] = []
        self._wake, self._has_room = asyncio.Event(), asyncio.Event()

    async def read(self, context: Any) -> None:
        """Answers all requests: a task for each call would cost more than the call."""
        while (message := await context.read()) is not grpc.aio.EOF:
            self._take(message)
            for request in message.more:
                self._take(request)
            while len(self._answers) > MAX_WAITING:
                self._has_room.clear()
                await self._has_room.wait()
        # What was asked before the gateway closed its side is answered before the stream ends.
        while self._answers:
            self._has_room.clear()
            await self._has_room.wait()

    async def write(self) -> None:
        """Writes answers as they come."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._answers:
                count = MAX_TOGETHER if self._reads_more else 1
                answers = self._answers[:count]
                await self._outlet.write(answers[0] if len(answers) == 1 else pb.AdmissionsResponse(more=answers))
                # More may have come meanwhile.
                del self._answers[: len(answers)]
                self._has_room.set()

    def _take(self, request: pb.AdmissionsRequest) -> None:
        answer = self._answer(request)
        if answer is not None:
            self._answers.append(answer)
            self._wake.set()

    def _answer(self, request: pb.AdmissionsRequest) -> pb.AdmissionsResponse | None:
        try:
            return self._admit_or_end(request)
        except Exception as error:
            if not isinstance(error, EXPECTED_ERRORS):
                log.exception("admission failed")
            if not request.stream_id:
                return None
            return pb.AdmissionsResponse(
                stream_id=request.stream_id, epoch=self._plane.epoch, error=admission_error(error)
            )

    def _admit_or_end(self, request: pb.AdmissionsRequest) -> pb.AdmissionsResponse | None:
        number, epoch, tenant = request.stream_id, self._plane.epoch, self._tenant
        match request.WhichOneof("request"):
            case "admit":
                admit = conversion.admission_request(request.admit, gateway_tenant(request.admit.tenant, tenant))
                admitted = conversion.admission_to_message(self._plane.calls.admit(admit))
                return pb.AdmissionsResponse(stream_id=number, epoch=epoch, admitted=admitted)
            case "end":
                end = conversion.end_of_call(request.end, gateway_tenant(request.end.tenant, tenant))
                self._plane.ends.end(end)
                ended = pb.EndCallResponse()
                return pb.AdmissionsResponse(stream_id=number, epoch=epoch, ended=ended) if number else None
            case "over":
                self._plane.ends.passed_on(gateway_tenant(request.over.tenant, tenant), request.over.call_ids)
                ended = pb.EndCallResponse()
                return pb.AdmissionsResponse(stream_id=number, epoch=epoch, ended=ended) if number else None
            case "hello":
                self._reads_more = request.hello.reads_more
        return None
