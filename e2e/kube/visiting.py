"""Visits of clusters on a real API server, and the objects there."""

from __future__ import annotations

import asyncio
import copy
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentserving_operator.__main__ import now
from agentserving_operator.api_server import CHILD_KINDS, ApiServer, path_of
from agentserving_operator.control_planes import ControlPlanes
from agentserving_operator.manifests import Images
from agentserving_operator.observe.settled import Settled
from agentserving_operator.reconcile import Reconciler, VisitResult
from agentserving_operator.scaler import Scaler
from agentserving_operator.spec.crd import API_VERSION, KIND, TENANT_KIND
from kube.client import CLUSTERS, TENANTS, Kube

IMAGES = Images(agentserving="registry.test/agentserving:1", vllm="registry.test/vllm:1", etcd="registry.test/etcd:1")
MERGE = "application/merge-patch+json"
SIMULATED: dict[str, Any] = {
    "model": {"name": "tiny"}, "engine": {"type": "Simulator", "replicas": 2}, "tls": {"issuer": "None"}
}  # fmt: skip


def make(admin: Kube, namespace: str, spec: dict[str, Any] | None = None, name: str = "demo") -> dict[str, Any]:
    """Creates an AgentServingCluster."""
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec or SIMULATED}
    found: dict[str, Any] = admin.must("POST", CLUSTERS.format(namespace), body, fieldValidation="Strict")
    return found


def make_tenant(admin: Kube, namespace: str, spec: dict[str, Any], name: str = "research") -> dict[str, Any]:
    """Creates an AgentServingTenant."""
    body = {"apiVersion": API_VERSION, "kind": TENANT_KIND, "metadata": {"name": name}, "spec": spec}
    found: dict[str, Any] = admin.must("POST", TENANTS.format(namespace), body, fieldValidation="Strict")
    return found


def tenant_ready(admin: Kube, namespace: str, name: str = "research") -> tuple[str, str]:
    """(status, reason) of its condition Ready; empty before there is one."""
    found = conditions(admin.get(f"{TENANTS.format(namespace)}/{name}")).get("Ready", {})
    return found.get("status", ""), found.get("reason", "")


def change(admin: Kube, namespace: str, spec: dict[str, Any], name: str = "demo") -> None:
    """Changes the spec, as `kubectl edit` does."""
    admin.must("PATCH", f"{CLUSTERS.format(namespace)}/{name}", {"spec": spec}, MERGE)


def live(admin: Kube, namespace: str, name: str = "demo") -> dict[str, Any]:
    """The AgentServingCluster as it is."""
    found: dict[str, Any] = admin.get(f"{CLUSTERS.format(namespace)}/{name}")
    return found


def visit(kubeconfig: Path, namespace: str, name: str = "demo", settled: Settled | None = None) -> VisitResult:
    """One visit, with the rights of that file's user. `settled`: what the operator remembers from earlier visits."""

    async def once() -> VisitResult:
        async with await ApiServer.connect(str(kubeconfig)) as api:
            reconciler = Reconciler(
                api=api, apply_policy=(planes := ControlPlanes()).apply_policy, apply_tenants=planes.apply_tenants,
                images=IMAGES, now=now, random_bytes=secrets.token_bytes, settled=settled or Settled(),
                scaling=Scaler(planes, lambda namespace, name: None),
            )  # fmt: skip
            return await reconciler.visit(namespace, name)

    return asyncio.run(once())


def children(admin: Kube, namespace: str) -> dict[tuple[str, str], dict[str, Any]]:
    """All objects of the kinds that clusters consist of, and Secrets."""
    found = {}
    for kind in (*CHILD_KINDS, "Secret"):
        for each in admin.get(path_of(kind, namespace))["items"]:
            found[kind, each["metadata"]["name"]] = {**each, "kind": kind}
    return found


def versions(admin: Kube, namespace: str) -> dict[tuple[str, str], str]:
    """resourceVersions of all children and clusters."""
    found = {key: each["metadata"]["resourceVersion"] for key, each in children(admin, namespace).items()}
    for each in admin.get(CLUSTERS.format(namespace))["items"]:
        found[KIND, each["metadata"]["name"]] = each["metadata"]["resourceVersion"]
    return found


def wanted(objects: dict[tuple[str, str], dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """The objects without what the API server records about their history."""
    found = copy.deepcopy(objects)
    for each in found.values():
        each.pop("status", None)
        for name in ("resourceVersion", "generation", "managedFields", "creationTimestamp", "uid"):
            each["metadata"].pop(name, None)
        for template in each.get("spec", {}).get("volumeClaimTemplates", []):
            template.pop("status", None)
    return found


def conditions(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Conditions by type."""
    return {each["type"]: each for each in cluster.get("status", {}).get("conditions", [])}


def play_controllers(admin: Kube, namespace: str) -> None:
    """Writes the status that controllers would write when all pods of all workloads are ready."""
    for (kind, name), each in children(admin, namespace).items():
        if kind in ("Deployment", "StatefulSet"):
            count = each["spec"]["replicas"]
            status = dict.fromkeys(("replicas", "readyReplicas", "updatedReplicas", "availableReplicas"), count)
            status["observedGeneration"] = each["metadata"]["generation"]
            admin.must("PATCH", f"{path_of(kind, namespace, name)}/status", {"status": status}, MERGE)


def edit_container(kind: str, name: str, edit: Callable[[dict[str, Any]], object]) -> Any:
    """Changes the first container of a workload, as `kubectl edit` does."""

    def change_live(admin: Kube, namespace: str) -> None:
        path = path_of(kind, namespace, name)
        found = admin.get(path)
        edit(found["spec"]["template"]["spec"]["containers"][0])
        admin.must("PUT", path, found)

    return change_live
