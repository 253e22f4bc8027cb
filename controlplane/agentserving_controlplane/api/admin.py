"""AdminService: messages to ControlPlane's operations and back."""

from __future__ import annotations

from agentserving.contract.ids import EngineId, Tenant
from agentserving.v1 import admin_service_pb2 as pb
from agentserving.v1 import admin_service_pb2_grpc as rpc

from agentserving_controlplane.api import conversion
from agentserving_controlplane.api.engine_conversion import demand_to_message, engine_to_message
from agentserving_controlplane.api.servicing import unary
from agentserving_controlplane.control_plane import ControlPlane


class AdminServicer(rpc.AdminServiceServicer):
    """See admin_service.proto."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    @unary
    async def ApplyPolicy(self, request: pb.ApplyPolicyRequest, tenant: Tenant) -> pb.ApplyPolicyResponse:
        version = await self._plane.apply_policy(conversion.policy_change(request))
        return pb.ApplyPolicyResponse(policy=conversion.policy_version_to_message(version))

    @unary
    async def GetPolicy(self, request: pb.GetPolicyRequest, tenant: Tenant) -> pb.GetPolicyResponse:
        status = self._plane.policy_status()
        return pb.GetPolicyResponse(
            policy=conversion.policy_version_to_message(status.policy),
            acknowledged_engine_ids=status.acknowledged,
            pending_engine_ids=status.pending,
            choices=map(conversion.choice_to_message, status.choices),
        )

    @unary
    async def ListEngines(self, request: pb.ListEnginesRequest, tenant: Tenant) -> pb.ListEnginesResponse:
        return pb.ListEnginesResponse(engines=map(engine_to_message, self._plane.engines))

    @unary
    async def DrainEngine(self, request: pb.DrainEngineRequest, tenant: Tenant) -> pb.DrainEngineResponse:
        engine = await self._plane.drain(EngineId(request.engine_id), True)
        return pb.DrainEngineResponse(engine=engine_to_message(engine))

    @unary
    async def UndrainEngine(self, request: pb.UndrainEngineRequest, tenant: Tenant) -> pb.UndrainEngineResponse:
        engine = await self._plane.drain(EngineId(request.engine_id), False)
        return pb.UndrainEngineResponse(engine=engine_to_message(engine))

    @unary
    async def GetDemand(self, request: pb.GetDemandRequest, tenant: Tenant) -> pb.GetDemandResponse:
        return demand_to_message(self._plane.demand())

    @unary
    async def GetOverview(self, request: pb.GetOverviewRequest, tenant: Tenant) -> pb.GetOverviewResponse:
        plane = self._plane
        return pb.GetOverviewResponse(
            epoch=plane.epoch,
            revision=plane.revision,
            policy=conversion.policy_version_to_message(plane.policy),
            programs_completed=plane.table.totals.programs_completed,
            calls_completed=plane.table.totals.calls_completed,
            calls_unmanaged=sum(engine.load.unmanaged_calls for engine in plane.engines),
            engines=map(engine_to_message, plane.engines),
            store_healthy=plane.commits.healthy,
            store_message=plane.commits.last_error,
            store_pending_writes=plane.commits.pending,
            policy_choices=map(conversion.choice_to_message, plane.policy_in_force.choices),
            **plane.overview(),
        )
