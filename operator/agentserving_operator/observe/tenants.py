"""What a control plane should know about tenants, from the AgentServingTenants of its cluster. Pure.

The control plane stores settings, not where they come from: an administrator may set tenants by hand. So the cluster's
status records the tenants that objects have set. They are recorded before they are set, and a recorded tenant without
an object is removed: whenever the operator ends in between, nothing is left behind, and no object needs a finalizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentserving.client.values import TenantSettings
from agentserving.contract.ids import Tenant

from agentserving_operator.manifests import Manifest
from agentserving_operator.observe.reasons import ConditionType, Reason, Trouble
from agentserving_operator.spec.parsing import SpecError, parse, plain
from agentserving_operator.spec.scheduling import to_service_class
from agentserving_operator.spec.status import Condition, ConditionStatus
from agentserving_operator.spec.tenant import TenantSpec, TenantStatus

# What a cluster's status can record.
MAX_TENANTS = 1_000
MAX_MESSAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantPlan:
    """What to do about the tenants of one cluster."""

    # Settings by tenant, of tenants that are recorded, and of those that are to be recorded first.
    ready: Mapping[str, TenantSettings]
    new: Mapping[str, TenantSettings]
    # Recorded tenants that no object describes any more.
    forget: tuple[str, ...]
    # By the name of an object: the tenant that it describes, or why it has no effect.
    described: Mapping[str, str]
    troubles: Mapping[str, Trouble]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a control plane did. `error`: why the rest was not done, "" = all of it was."""

    refused: Mapping[str, str]
    forgotten: frozenset[str]
    error: str = ""


def of_cluster(objects: Iterable[Manifest], cluster_name: str) -> list[Manifest]:
    """The objects that name a cluster, the oldest first."""
    found = [
        each
        for each in objects
        if (each.get("spec") or {}).get("clusterName") == cluster_name and "deletionTimestamp" not in each["metadata"]
    ]
    return sorted(found, key=lambda each: (each["metadata"].get("creationTimestamp", ""), each["metadata"]["name"]))


def plan(objects: Sequence[Manifest], recorded: Sequence[str]) -> TenantPlan:
    """From the objects of a cluster, the oldest first, and what its status has recorded."""
    settings: dict[str, TenantSettings] = {}
    described: dict[str, str] = {}
    troubles: dict[str, Trouble] = {}
    for each in objects:
        name = each["metadata"]["name"]
        try:
            spec = parse(TenantSpec, each["spec"])
        except SpecError as error:
            troubles[name] = Trouble(Reason.INVALID_SPEC, str(error))
            continue
        tenant = spec.tenant or name
        if tenant in settings:
            (owner,) = [other for other, described_tenant in described.items() if described_tenant == tenant]
            message = f"tenant {tenant} is described by AgentServingTenant {owner}, which is older: delete one of them"
            troubles[name] = Trouble(Reason.TENANT_TAKEN, message)
        elif len(settings) == MAX_TENANTS:
            message = f"a cluster has at most {MAX_TENANTS} AgentServingTenants: delete older ones"
            troubles[name] = Trouble(Reason.TOO_MANY_TENANTS, message)
        else:
            settings[tenant], described[name] = _settings(tenant, spec), tenant
    return TenantPlan(
        ready={tenant: each for tenant, each in settings.items() if tenant in recorded},
        new={tenant: each for tenant, each in settings.items() if tenant not in recorded},
        forget=tuple(tenant for tenant in recorded if tenant not in settings),
        described=described,
        troubles=troubles,
    )


def _settings(tenant: str, spec: TenantSpec) -> TenantSettings:
    limits, budget = spec.limits, spec.program_budget
    return TenantSettings(
        tenant=Tenant(tenant),
        weight=spec.weight,
        max_programs=limits.programs or 0,
        max_calls=limits.calls_at_once or 0,
        calls_per_minute=limits.calls_per_minute or 0,
        tokens_per_minute=limits.tokens_per_minute or 0,
        tokens_per_day=limits.tokens_per_day or 0,
        program_tokens=budget.tokens or 0 if budget is not None else 0,
        program_engine_s=budget.engine_seconds or 0 if budget is not None else 0,
        program_calls=budget.calls or 0 if budget is not None else 0,
        service_class=to_service_class(spec.service_class),
    )


def recorded_after(plan: TenantPlan, outcome: Outcome | None) -> tuple[str, ...]:
    """What the cluster's status records from now on: new tenants, and none that has been forgotten."""
    forgotten = outcome.forgotten if outcome is not None else frozenset()
    return tuple(sorted({*plan.ready, *plan.new, *(each for each in plan.forget if each not in forgotten)}))


def troubles_after(plan: TenantPlan, outcome: Outcome | None, cluster_name: str) -> dict[str, Trouble | None]:
    """Why each object is not in force, by its name; None = it is. Objects of new tenants are left out."""
    found: dict[str, Trouble | None] = dict(plan.troubles)
    for name, tenant in plan.described.items():
        if outcome is None:
            message = f"the control plane of {cluster_name} does not serve yet: see the conditions of the cluster"
            found[name] = Trouble(Reason.NOT_REACHABLE, message)
        elif tenant in plan.new:
            continue
        elif tenant in outcome.refused:
            found[name] = Trouble(Reason.TENANT_REFUSED, f"refused by the control plane: {outcome.refused[tenant]}")
        elif outcome.error:
            found[name] = Trouble(Reason.NOT_REACHABLE, f"the control plane of {cluster_name}: {outcome.error}")
        else:
            found[name] = None
    return found


def status_of_tenant(live: Manifest, trouble: Trouble | None, cluster_name: str, now: str) -> dict[str, Any]:
    """The whole status of an AgentServingTenant as plain JSON. `now` is RFC 3339."""
    before = {each["type"]: each for each in live.get("status", {}).get("conditions", [])}.get(ConditionType.READY, {})
    status = ConditionStatus.TRUE if trouble is None else ConditionStatus.FALSE
    generation = int(live["metadata"]["generation"])
    ready = Condition(
        type=ConditionType.READY.value,
        status=status,
        observed_generation=generation,
        last_transition_time=str(before["lastTransitionTime"]) if before.get("status") == status.value else now,
        reason=(Reason.IN_FORCE if trouble is None else trouble.reason).value,
        message=f"in force in cluster {cluster_name}" if trouble is None else trouble.message[:MAX_MESSAGE],
    )
    return dict(plain(TenantStatus(observed_generation=generation, conditions=(ready,))))
