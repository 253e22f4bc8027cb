"""The spec and the status of an AgentServingTenant: a tenant's share of a cluster's engines, and bounds of its use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from agentserving_operator.spec.budgets import ProgramBudget
from agentserving_operator.spec.cluster import DNS_LABEL, MAX_NAME
from agentserving_operator.spec.fields import choice, integer, items, struct, text
from agentserving_operator.spec.scheduling import ServiceClass
from agentserving_operator.spec.status import Condition

# The contract's bounds (tenant_service.proto): names, weights, and numbers that fit 32 bits or are exact in JSON.
MAX_TENANT_NAME, MAX_WEIGHT = 64, 1000
MAX_COUNT, MAX_TOKENS = 2**32 - 1, 2**53 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a tenant's use, over all of its keys. Absent: no bound."""

    programs: int | None = integer(
        "Programs that are neither closed nor expired, paused ones included.", 1, MAX_COUNT, default=None
    )
    calls_at_once: int | None = integer("Calls that have begun and not ended.", 1, MAX_COUNT, default=None)
    calls_per_minute: int | None = integer("Calls a minute.", 1, MAX_COUNT, default=None)
    tokens_per_minute: int | None = integer("Tokens of prompts and answers a minute.", 1, MAX_TOKENS, default=None)
    tokens_per_day: int | None = integer("Tokens of prompts and answers a day.", 1, MAX_TOKENS, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSpec:
    """What a tenant is entitled to in one cluster."""

    CANNOT_BE_CHANGED: ClassVar[str] = "cannot be changed: create a new AgentServingTenant"

    cluster_name: str = text(
        "Name of the AgentServingCluster, in the same namespace. Immutable.",
        MAX_NAME,
        min_length=1,
        pattern=DNS_LABEL,
        immutable=True,
    )
    tenant: str | None = text(
        "The tenant, as keys name it; absent: the name of this object. Immutable.",
        MAX_TENANT_NAME,
        default=None,
        min_length=1,
        pattern=r"^[A-Za-z0-9._-]+$",
        immutable=True,
    )
    weight: int = integer(
        "Share of each engine while several tenants have calls there: of two with 2 and 1, the first gets two thirds.",
        1,
        MAX_WEIGHT,
        default=1,
    )
    service_class: ServiceClass | None = choice(
        "Class of service of its programs, and the best that they may ask for; absent: any, and the cluster's for those"
        " that ask for none.",
        default=None,
    )
    limits: Limits = struct("Bounds of its use.", default=Limits)
    program_budget: ProgramBudget | None = struct(
        "Budget of each of its programs that is opened without one; absent: the cluster's.", default=None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantStatus:
    """Whether the control plane has what the spec says."""

    observed_generation: int | None = integer(
        "Generation of the spec that this status describes.", 0, 2**53 - 1, default=None
    )
    conditions: tuple[Condition, ...] = items("The condition Ready.", 16, list_type="map", keys=("type",))
