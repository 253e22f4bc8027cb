"""Operations on tenants, in the form of operations.py: shares of engines, and bounds. For administrators. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from agentserving.client import messages
from agentserving.client.operations import Operation
from agentserving.client.values import TenantSettings
from agentserving.contract.service_class import ServiceClass
from agentserving.v1 import tenant_service_pb2 as pb
from agentserving.v1 import types_pb2

TENANTS = "/agentserving.v1.TenantService/"


@dataclass(frozen=True, slots=True)
class TenantPage:
    """A page of a list of tenants. An empty `next_page_token` marks the last one."""

    tenants: tuple[TenantSettings, ...]
    next_page_token: str


def set_tenant(
    tenant: str,
    *,
    weight: int | None = None,
    max_programs: int | None = None,
    max_calls: int | None = None,
    calls_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    tokens_per_day: int | None = None,
    program_tokens: int | None = None,
    program_engine_s: int | None = None,
    program_calls: int | None = None,
    service_class: ServiceClass | None = None,
) -> Operation[TenantSettings]:
    """Sets a tenant's share and bounds; durable when it returns. None = stays as it is, 0 = no bound.

    While several tenants have calls on an engine they share it by weight, 1 to 1000. `program_...`: the budget of each
    program that is opened without one. `service_class`: of programs that ask for none, and the best that they may ask
    for; UNSPECIFIED = any.
    """
    said = pb.Tenant(
        tenant=tenant,
        weight=weight,
        max_programs=max_programs,
        max_calls=max_calls,
        calls_per_minute=calls_per_minute,
        tokens_per_minute=tokens_per_minute,
        tokens_per_day=tokens_per_day,
        program_tokens=program_tokens,
        program_engine_s=program_engine_s,
        program_calls=program_calls,
        service_class=None if service_class is None else types_pb2.ServiceClass.ValueType(service_class),
    )
    return Operation(
        TENANTS + "SetTenant",
        pb.SetTenantRequest(tenant=said),
        pb.SetTenantResponse,
        lambda response: messages.read(TenantSettings, response.tenant),
    )


def list_tenants_page(*, page_size: int = 0, page_token: str = "") -> Operation[TenantPage]:
    """A page of the tenants that something has been set for, in the order of their names."""
    return Operation(
        TENANTS + "ListTenants",
        pb.ListTenantsRequest(page_size=page_size, page_token=page_token),
        pb.ListTenantsResponse,
        lambda response: TenantPage(
            tuple(messages.read(TenantSettings, each) for each in response.tenants), response.next_page_token
        ),
    )


def remove_tenant(tenant: str) -> Operation[None]:
    """Forgets a tenant's share and bounds; its keys and programs stay."""
    return Operation(
        TENANTS + "RemoveTenant",
        pb.RemoveTenantRequest(tenant=tenant),
        pb.RemoveTenantResponse,
        lambda response: None,
    )
