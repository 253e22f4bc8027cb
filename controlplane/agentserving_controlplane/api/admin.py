"""AdminService."""

from __future__ import annotations

from agentserving.v1 import admin_service_pb2 as pb
from agentserving.v1 import admin_service_pb2_grpc as rpc
from agentserving.v1 import engine_service_pb2

from agentserving_controlplane.api.common import unary
from agentserving_controlplane.control_plane import ControlPlane


class AdminServicer(rpc.AdminServiceServicer):
    """Translates; ControlPlane decides."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    @unary
    async def ApplyPolicy(self, request: pb.ApplyPolicyRequest, tenant: str) -> pb.ApplyPolicyResponse:
        """Durable before it answers."""
        return pb.ApplyPolicyResponse(policy=await self._plane.apply_policy(request))

    @unary
    async def GetPolicy(self, request: pb.GetPolicyRequest, tenant: str) -> pb.GetPolicyResponse:
        """With who follows it already."""
        attached = [e for e in self._plane.engines.engines.values() if e.attached]
        version = self._plane.policy.version
        return pb.GetPolicyResponse(
            policy=self._plane.policy,
            acknowledged_engine_ids=sorted(e.engine_id for e in attached if e.policy_version == version),
            pending_engine_ids=sorted(e.engine_id for e in attached if e.policy_version != version),
        )

    @unary
    async def ListEngines(self, request: pb.ListEnginesRequest, tenant: str) -> pb.ListEnginesResponse:
        """All that ever attached to this leader."""
        engines = self._plane.engines
        return pb.ListEnginesResponse(engines=[engines.message(e) for e in engines.engines.values()])

    @unary
    async def DrainEngine(self, request: pb.DrainEngineRequest, tenant: str) -> pb.DrainEngineResponse:
        """New programs go elsewhere from now on."""
        engine = self._plane.engines.get(request.engine_id)
        engine.draining = True
        self._plane.links.direct(engine.engine_id, drain=engine_service_pb2.Drain())
        self._plane.engines_changed()
        return pb.DrainEngineResponse(engine=self._plane.engines.message(engine))

    @unary
    async def GetOverview(self, request: pb.GetOverviewRequest, tenant: str) -> pb.GetOverviewResponse:
        """Counts of the whole cluster."""
        plane = self._plane
        engines = [plane.engines.message(e) for e in plane.engines.engines.values()]
        return pb.GetOverviewResponse(
            epoch=plane.epoch,
            revision=plane.revision,
            policy=plane.policy,
            programs_completed=plane.table.totals.programs_completed,
            calls_completed=plane.table.totals.calls_completed,
            calls_unmanaged=sum(e.load.unmanaged_calls for e in engines),
            engines=engines,
            store_healthy=plane.commits.healthy,
            store_message=plane.commits.last_error,
            store_pending_writes=plane.commits.pending,
            **plane.overview(),
        )
