"""One visit of the AgentServingTenants of a cluster: sets them at its control plane, and says so in their status.

`observe.tenants` decides; it explains why a tenant is recorded in the cluster's status before it is set.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
from agentserving.client.values import TenantSettings

from agentserving_operator.errors import RefusedError
from agentserving_operator.field_owners import in_stored_version
from agentserving_operator.manifests import Manifest
from agentserving_operator.observe.reasons import Reason, Trouble
from agentserving_operator.observe.tenants import (
    Outcome,
    of_cluster,
    plan,
    recorded_after,
    status_of_tenant,
    troubles_after,
)
from agentserving_operator.spec.crd import API_VERSION, TENANT_KIND

log = structlog.get_logger()

# Sets these, removes those; never raises.
ApplyTenants = Callable[[Mapping[str, TenantSettings], Collection[str]], Awaitable[Outcome]]


class Api(Protocol):
    """What is asked of the API server; raises as `reconcile.Api` does."""

    async def find(self, kind: str, namespace: str, labels: Mapping[str, str] | None = None) -> list[Manifest]:
        """Objects with these labels."""

    async def apply_status(self, manifest: Manifest) -> Manifest:
        """Replaces the whole status."""

    async def set_field_owners(self, live: Manifest, entries: Sequence[Manifest]) -> Manifest:
        """Replaces managedFields. ConflictError when the object is not the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """`recorded`: for the cluster's status. `pending`: visit again soon."""

    recorded: tuple[str, ...]
    pending: bool


async def settle(
    api: Api, namespace: str, cluster_name: str, recorded: Sequence[str], apply: ApplyTenants | None, now: str
) -> Settled:
    """Settles the tenants of a cluster that exists. `apply` None = its control plane does not serve yet."""
    objects = await _tenants(api, namespace, cluster_name)
    wanted = plan(objects, recorded)
    outcome = None
    if apply is not None:
        is_nothing = not wanted.ready and not wanted.forget
        outcome = Outcome(refused={}, forgotten=frozenset()) if is_nothing else await apply(wanted.ready, wanted.forget)
    troubles = troubles_after(wanted, outcome, cluster_name)
    for each in objects:
        if each["metadata"]["name"] in troubles:
            await _write(api, each, troubles[each["metadata"]["name"]], cluster_name, now)
    unfinished = outcome is not None and bool(wanted.new or outcome.error)
    return Settled(recorded=recorded_after(wanted, outcome), pending=unfinished)


async def report_missing(api: Api, namespace: str, cluster_name: str, now: str) -> None:
    """Says to the tenants of a cluster that it does not exist."""
    message = f"there is no AgentServingCluster {cluster_name} in namespace {namespace}: create it, or check the name"
    for each in await _tenants(api, namespace, cluster_name):
        await _write(api, each, Trouble(Reason.CLUSTER_MISSING, message), cluster_name, now)


async def _tenants(api: Api, namespace: str, cluster_name: str) -> list[Manifest]:
    try:
        objects = of_cluster(await api.find(TENANT_KIND, namespace), cluster_name)
        return [await in_stored_version(api, each) for each in objects]
    except RefusedError as error:
        # During an upgrade the kind may not be there yet, and clusters must be visited all the same.
        if error.status != 404:
            raise
        return []


async def _write(api: Api, live: Manifest, trouble: Trouble | None, cluster_name: str, now: str) -> None:
    status, metadata = status_of_tenant(live, trouble, cluster_name, now), live["metadata"]
    if status == live.get("status"):
        return
    named = {"name": metadata["name"], "namespace": metadata["namespace"]}
    try:
        await api.apply_status({"apiVersion": API_VERSION, "kind": TENANT_KIND, "metadata": named, "status": status})
    except RefusedError as error:
        # It was deleted meanwhile.
        if error.status != 404:
            raise
        log.info("tenant is gone", namespace=named["namespace"], name=named["name"])
