"""TenantService: messages to TenantOperations and back."""

from __future__ import annotations

from typing import Any

import msgspec
from agentserving.contract.ids import Tenant
from agentserving.v1 import tenant_service_pb2 as pb
from agentserving.v1 import tenant_service_pb2_grpc as rpc

from agentserving_controlplane.api.authentication import check_tenant
from agentserving_controlplane.api.servicing import unary
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.policy.tenants import BOUNDS, TenantRow
from agentserving_controlplane.table.service_rights import known_service_class

_SETTINGS = ("weight", *BOUNDS)


class TenantServicer(rpc.TenantServiceServicer):
    """Weights and bounds of tenants, for operators and administrators."""

    def __init__(self, plane: ControlPlane) -> None:
        self._tenants = plane.tenant_operations

    @unary
    async def SetTenant(self, request: pb.SetTenantRequest, tenant: Tenant) -> pb.SetTenantResponse:
        said = request.tenant
        # HasField takes literals only.
        has: Any = said.HasField
        changes = {name: getattr(said, name) for name in _SETTINGS if has(name)}
        if has("service_class"):
            changes["service_class"] = known_service_class(said.service_class)
        row = await self._tenants.set(check_tenant(said.tenant), changes)
        return pb.SetTenantResponse(tenant=tenant_to_message(row))

    @unary
    async def ListTenants(self, request: pb.ListTenantsRequest, tenant: Tenant) -> pb.ListTenantsResponse:
        rows, next_token = self._tenants.page(request.page_token, request.page_size)
        return pb.ListTenantsResponse(tenants=map(tenant_to_message, rows), next_page_token=next_token)

    @unary
    async def RemoveTenant(self, request: pb.RemoveTenantRequest, tenant: Tenant) -> pb.RemoveTenantResponse:
        await self._tenants.remove(check_tenant(request.tenant))
        return pb.RemoveTenantResponse()


def tenant_to_message(row: TenantRow) -> pb.Tenant:
    """A row with every field set."""
    return pb.Tenant(**msgspec.structs.asdict(row))
