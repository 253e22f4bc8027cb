"""Every object that a cluster needs, as pure functions of its spec: one file per kind, `desired` for all of them."""

from __future__ import annotations

import hashlib
import json

from agentserving_operator.manifests.batches_statefulset import batches_statefulset, check_batches
from agentserving_operator.manifests.certificate_objects import certificates
from agentserving_operator.manifests.common import AgentServingCluster, Component, Images, Manifest, keys_are_needed
from agentserving_operator.manifests.control_plane_deployment import control_plane_deployment
from agentserving_operator.manifests.disruption_budgets import disruption_budget
from agentserving_operator.manifests.engine_group import KIND as GROUP_KIND
from agentserving_operator.manifests.engine_group import engine_group, for_workers
from agentserving_operator.manifests.engine_statefulset import engine_statefulset
from agentserving_operator.manifests.etcd_statefulset import etcd_statefulset
from agentserving_operator.manifests.gateway_deployment import gateway_deployment
from agentserving_operator.manifests.inference_pool import endpoint_picker_service, inference_pool
from agentserving_operator.manifests.network_policies import network_policy
from agentserving_operator.manifests.pod_template import merged
from agentserving_operator.manifests.service_accounts import service_account
from agentserving_operator.manifests.services import (
    batches_service,
    clients_service,
    control_plane_service,
    engine_service,
    etcd_services,
    gateway_service,
)
from agentserving_operator.manifests.ways_in import ways_in
from agentserving_operator.spec.crd import GROUP
from agentserving_operator.spec.store import StoreType
from agentserving_operator.spec.tls import Issuer

__all__ = ["HASH_ANNOTATION", "AgentServingCluster", "Component", "Images", "Manifest", "components", "desired"]

# Comparing fields cannot reveal one that we stopped setting; a changed hash of what was applied last does.
HASH_ANNOTATION = f"{GROUP}/applied-hash"
# Engines drain when they are evicted, and with a worker its whole engine does.
_WITHOUT_BUDGET = (Component.ENGINE, Component.ENGINE_WORKER)


def components(cluster: AgentServingCluster) -> list[Component]:
    """Components of this cluster: etcd only where it is the store, batches and workers of engines only on request."""
    absent = set() if cluster.spec.store.type is StoreType.ETCD else {Component.ETCD}
    if not cluster.spec.batches.enabled:
        absent.add(Component.BATCHES)
    if not cluster.spans_nodes:
        absent.add(Component.ENGINE_WORKER)
    return [part for part in Component if part not in absent]


def desired(cluster: AgentServingCluster) -> list[Manifest]:
    """All objects except Secrets, in the order in which they are needed.

    SpecError when a pod template of the spec changes what the parts rely on, or batches lack clients with keys.
    """
    parts = components(cluster)
    found = [service_account(cluster, part) for part in parts if part is not Component.ENGINE_WORKER]
    if cluster.spec.tls.issuer is Issuer.CERT_MANAGER:
        found += certificates(cluster)
    found += [network_policy(cluster, part) for part in parts]
    found += [disruption_budget(cluster, part) for part in parts if part not in _WITHOUT_BUDGET]
    if Component.ETCD in parts:
        found += [*etcd_services(cluster), etcd_statefulset(cluster)]
    found += [control_plane_service(cluster), control_plane_deployment(cluster)]
    if keys_are_needed(cluster):
        found.append(clients_service(cluster))
    engines = engine_group(cluster) if cluster.spans_nodes else engine_statefulset(cluster)
    found += [engine_service(cluster), engines]
    if Component.BATCHES in parts:
        check_batches(cluster)
        found += [batches_service(cluster), batches_statefulset(cluster)]
    found += [gateway_service(cluster), gateway_deployment(cluster)]
    if cluster.spec.gateway.inference_pool.enabled:
        found += [endpoint_picker_service(cluster), inference_pool(cluster)]
    found += ways_in(cluster)
    _merge_templates(cluster, found)
    for each in found:
        made_of = _hash(each)
        each["metadata"].setdefault("annotations", {})[HASH_ANNOTATION] = made_of
    return found


def _merge_templates(cluster: AgentServingCluster, objects: list[Manifest]) -> None:
    spec = cluster.spec
    etcd = spec.store.etcd
    templates = {
        cluster.child(Component.ENGINE): (spec.engine.template, "spec.engine.template"),
        cluster.child(Component.CONTROL_PLANE): (spec.control_plane.template, "spec.controlPlane.template"),
        cluster.child(Component.GATEWAY): (spec.gateway.template, "spec.gateway.template"),
        cluster.child(Component.ETCD): (etcd.template if etcd is not None else None, "spec.store.etcd.template"),
    }
    for each in objects:
        template, path = templates.get(each["metadata"]["name"], (None, ""))
        if template is not None and each["kind"] in ("Deployment", "StatefulSet"):
            each["spec"]["template"] = merged(each["spec"]["template"], template, path)
        if template is not None and each["kind"] == GROUP_KIND:
            of_group = each["spec"]["leaderWorkerTemplate"]
            of_group["leaderTemplate"] = merged(of_group["leaderTemplate"], template, path)
            of_group["workerTemplate"] = merged(of_group["workerTemplate"], for_workers(template), path)


def _hash(manifest: Manifest) -> str:
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
