"""CallService on the control plane: admissions, one by one or on a gateway's stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog
from agentserving.v1 import call_service_pb2 as pb
from agentserving.v1 import call_service_pb2_grpc as rpc
from agentserving.v1 import types_pb2
from google.protobuf.message import DecodeError

from agentserving_controlplane.api import convert
from agentserving_controlplane.api.common import Outlet, check_tenant, own_tenant, tenant_of, unary
from agentserving_controlplane.api.status_codes import abort, admission_error
from agentserving_controlplane.control_plane import ControlPlane, now_us
from agentserving_controlplane.engines.registry import LOST
from agentserving_controlplane.errors import DomainError
from agentserving_controlplane.store.port import StoreError

log = structlog.get_logger()

# What ends within this time is told together.
ENDINGS_INTERVAL_S = 0.1


def _named(named: str, tenant: str) -> str:
    """A gateway speaks for the tenants of its clients, whose credentials it has checked."""
    return check_tenant(named) if named else tenant


class CallServicer(rpc.CallServiceServicer):
    """Generate is the sidecar's: here it answers UNIMPLEMENTED."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    @unary
    async def AdmitCall(self, request: pb.AdmitCallRequest, tenant: str) -> pb.AdmitCallResponse:
        """Waits for nothing."""
        return self._plane.admit(request, own_tenant(request.tenant, tenant))

    @unary
    async def EndCall(self, request: pb.EndCallRequest, tenant: str) -> pb.EndCallResponse:
        """For calls that no engine will report."""
        self._plane.end_by_request(request, own_tenant(request.tenant, tenant))
        return pb.EndCallResponse()

    async def Admissions(self, requests: Any, context: Any) -> None:
        """No task per call: each request is answered before the next is read."""
        try:
            tenant = tenant_of(context)
        except DomainError as error:
            await abort(context, error)
        outlet = Outlet(context)
        pusher = asyncio.create_task(self._push_engines(outlet))
        try:
            while (request := await context.read()) is not grpc.aio.EOF:
                response = self._answer(request, tenant)
                if response is not None:
                    await outlet.write(response)
            await outlet.close()
        except DecodeError as error:
            await outlet.close()
            await abort(context, error)
        finally:
            pusher.cancel()
            await asyncio.gather(pusher, return_exceptions=True)

    async def WatchEndings(
        self, request: pb.WatchEndingsRequest, context: Any
    ) -> AsyncIterator[pb.WatchEndingsResponse]:
        """What has ended since it was looked at last; a reader that does not read holds up nobody but itself."""
        endings, wake = self._plane.endings, asyncio.Event()
        self._plane.listeners.add(wake.set)
        try:
            tenant = tenant_of(context)
            seen = request.after_position or endings.newest(tenant)
            if known := endings.knows(tenant, seen):
                news = endings.after(tenant, seen)
            else:
                news = endings.after(tenant, endings.newest(tenant))
            yield convert.endings(news, now_us(), restarted=not known)
            while True:
                if not news.more:
                    await wake.wait()
                    await asyncio.sleep(ENDINGS_INTERVAL_S)
                wake.clear()
                news = endings.after(tenant, news.position)
                if news.endings or news.lost:
                    yield convert.endings(news, now_us())
        except DomainError as error:
            await abort(context, error)
        finally:
            self._plane.listeners.discard(wake.set)

    def _answer(self, request: pb.AdmissionsRequest, tenant: str) -> pb.AdmissionsResponse | None:
        response = pb.AdmissionsResponse(stream_id=request.stream_id, epoch=self._plane.epoch)
        try:
            match request.WhichOneof("request"):
                case "admit":
                    response.admitted.CopyFrom(self._plane.admit(request.admit, _named(request.admit.tenant, tenant)))
                case "end":
                    self._plane.end_by_request(request.end, _named(request.end.tenant, tenant))
                    if not request.stream_id:
                        return None
                    response.ended.SetInParent()
                case _:
                    return None
        except (DomainError, StoreError) as error:
            if not request.stream_id:
                return None
            response.error.CopyFrom(admission_error(error))
        except Exception as error:
            log.exception("admission failed")
            response.error.CopyFrom(admission_error(error))
        return response

    async def _push_engines(self, outlet: Outlet) -> None:
        """Which engines there are: at once, and whenever that changes."""
        told: list[tuple[str, str, types_pb2.EngineState.ValueType]] | None = None
        wake = asyncio.Event()
        self._plane.listeners.add(wake.set)
        try:
            while True:
                wake.clear()
                there = [e for e in self._plane.engines.engines.values() if e.state != LOST]
                facts = [(e.engine_id, e.address, e.state) for e in there]
                if facts != told:
                    told = facts
                    engines = [self._plane.engines.message(e) for e in there]
                    message = pb.AdmissionsResponse(engines=pb.EngineSet(engines=engines), epoch=self._plane.epoch)
                    await outlet.write(message)
                await wake.wait()
                await asyncio.sleep(0.1)
        finally:
            self._plane.listeners.discard(wake.set)
