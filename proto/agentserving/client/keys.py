"""API keys, as the clients return them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from agentserving.client.values import WireEnum
from agentserving.contract.ids import Tenant
from agentserving.contract.service_class import ServiceClass


class KeyRole(WireEnum):
    """Whose key it is. Only clients' and administrators' can be made."""

    UNSPECIFIED = 0
    CLIENT = 1
    ADMIN = 2
    GATEWAY = 3
    SIDECAR = 4
    OPERATOR = 5
    CONTROL_PLANE = 6
    ENGINE = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key without its secret. `tenant` is empty for administrators; `expire_time` None = never."""

    key_id: str
    role: KeyRole
    tenant: Tenant
    name: str
    create_time: datetime | None
    expire_time: datetime | None
    revoke_time: datetime | None
    # 0 = unbounded.
    calls_per_minute: int
    prompt_tokens_per_minute: int
    # Of programs opened with it, and the best that they may ask for; UNSPECIFIED = as the tenant's.
    service_class: ServiceClass


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A key that was just made. Its text cannot be had again."""

    key: ApiKey
    text: str
