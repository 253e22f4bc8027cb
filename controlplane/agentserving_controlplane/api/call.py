"""CallService on the control plane: admissions, singly or on a gateway's stream, and endings for recorders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import msgspec
from agentserving.contract.identity import Role
from agentserving.contract.ids import Tenant
from agentserving.v1 import call_service_pb2 as pb
from agentserving.v1 import call_service_pb2_grpc as rpc

from agentserving_controlplane.api import conversion
from agentserving_controlplane.api.admissions import Admissions
from agentserving_controlplane.api.authentication import current_caller, service_limit
from agentserving_controlplane.api.engine_conversion import engine_to_message
from agentserving_controlplane.api.servicing import (
    end_with,
    own_tenant,
    server_stream,
    tenant_of,
    unary,
)
from agentserving_controlplane.api.streams import MAX_WATCHERS, Outlet, until_first_end, woken_by
from agentserving_controlplane.control_plane import ControlPlane

# Endings, and changes of engines, within this time are sent together.
ENDINGS_INTERVAL_S, ENGINES_INTERVAL_S = 0.1, 0.1


class CallServicer(rpc.CallServiceServicer):
    """See call_service.proto."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    @unary
    async def AdmitCall(self, request: pb.AdmitCallRequest, tenant: Tenant) -> pb.AdmitCallResponse:
        tenant = own_tenant(request.tenant, tenant)
        admission = self._plane.calls.admit(conversion.admission_request(request, tenant, service_limit()))
        return conversion.admission_to_message(admission)

    @unary
    async def EndCall(self, request: pb.EndCallRequest, tenant: Tenant) -> pb.EndCallResponse:
        end = conversion.end_of_call(request, own_tenant(request.tenant, tenant))
        caller = current_caller()
        if caller is not None and caller.role is Role.CLIENT:
            # A client's own word would make its calls free: its engine says whether the call ran.
            end = msgspec.structs.replace(end, never_started=False)
        self._plane.ends.end(end)
        return pb.EndCallResponse()

    async def Admissions(self, requests: Any, context: Any) -> None:
        """Serves a gateway's stream until either side ends it."""
        outlet = Outlet(context)
        try:
            # A gateway that has been authenticated has authenticated its clients: it knows the tenant of each.
            admissions = Admissions(self._plane, outlet, tenant_of(context) if current_caller() is None else None)
            await until_first_end(
                requests=admissions.read(context),
                answers=admissions.write(),
                engines=self._send_engines(outlet),
            )
        except Exception as error:
            await outlet.close()
            await end_with(context, error)
        await outlet.close()

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncGenerator[pb.GenerateResponse, None]:
        """The sidecar's: here it answers UNIMPLEMENTED."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "sidecars serve Generate: AdmitCall's answer names one")
        yield pb.GenerateResponse()

    async def _send_engines(self, outlet: Outlet) -> None:
        """Sends the engines that a gateway may fall back to, first and whenever one of them changes."""
        registry, sent = self._plane.engines, -1
        with woken_by(self._plane.listeners) as wake:
            while True:
                wake.clear()
                if registry.facts_revision != sent:
                    sent = registry.facts_revision
                    engines = [engine for engine in registry if engine.attached]
                    message = pb.EngineSet(engines=map(engine_to_message, engines), reads_more=True)
                    await outlet.write(pb.AdmissionsResponse(engines=message, epoch=self._plane.epoch))
                await wake.wait()
                await asyncio.sleep(ENGINES_INTERVAL_S)

    @server_stream
    async def WatchEndings(
        self, request: pb.WatchEndingsRequest, tenant: Tenant
    ) -> AsyncGenerator[pb.WatchEndingsResponse, None]:
        """Endings since the last message; a slow reader delays only itself, and learns how many it missed."""
        endings, now = self._plane.endings, self._plane.now
        with woken_by(self._plane.listeners, MAX_WATCHERS) as wake:
            position = request.after_position or endings.newest(tenant)
            restarted = not endings.knows(tenant, position)
            news = endings.after(tenant, endings.newest(tenant) if restarted else position)
            yield conversion.endings(news, now().unix_us, restarted=restarted)
            while True:
                if not news.more:
                    await wake.wait()
                    await asyncio.sleep(ENDINGS_INTERVAL_S)
                wake.clear()
                news = endings.after(tenant, news.position)
                if news.endings or news.lost:
                    yield conversion.endings(news, now().unix_us)
