"""Chooses an AgentServingCluster, and names its objects. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Object = dict[str, Any]

RESOURCE = "agentservingclusters.agentserving.io"
# Of the control plane's container and Service (the operator's manifests).
CONTROL_PLANE_PORT = 7070


class NoClusterError(RuntimeError):
    """There is no such cluster, or several and none was named."""


def choose(clusters: Sequence[Object], name: str, namespace: str) -> Object:
    """The cluster called `name`, or the only one. NoClusterError lists the clusters and says how to name one."""
    where = f"namespace {namespace}" if namespace else "the current namespace"
    names = sorted(str(cluster["metadata"]["name"]) for cluster in clusters)
    if name:
        for cluster in clusters:
            if cluster["metadata"]["name"] == name:
                return cluster
        raise NoClusterError(f"no AgentServingCluster {name!r} in {where}; there are {', '.join(names) or 'none'}")
    if not clusters:
        raise NoClusterError(
            f"no AgentServingCluster in {where}: name another with -n (kubectl get asc -A shows all), or create one"
        )
    if len(clusters) > 1:
        raise NoClusterError(
            f"{len(clusters)} AgentServingClusters in {where}: name one of {', '.join(names)} with --cluster"
        )
    return clusters[0]


def labels(cluster_name: str, component: str = "") -> str:
    """Selector of a cluster's pods and Services."""
    of = f"app.kubernetes.io/name=agentserving,app.kubernetes.io/instance={cluster_name}"
    return f"{of},app.kubernetes.io/component={component}" if component else of


def pod_at(pods: Sequence[Object], address: str) -> str:
    """The pod with the IP of an address, as an argument of kubectl. NoClusterError."""
    host = address.rpartition(":")[0]
    for pod in pods:
        if pod.get("status", {}).get("podIP") == host:
            return f"pod/{pod['metadata']['name']}"
    raise NoClusterError(f"the control plane that leads, {address}, is no pod of this cluster: try again in a moment")


def control_plane_service(cluster: Object) -> str:
    """The control plane's Service, as an argument of kubectl."""
    return f"svc/{cluster['metadata']['name']}-control-plane"


def client_secret(cluster: Object) -> str:
    """The Secret with a client's certificate (the operator's manifests); "" without TLS."""
    issuer = cluster.get("spec", {}).get("tls", {}).get("issuer", "None")
    return "" if issuer == "None" else f"{cluster['metadata']['name']}-admin-tls"


def conditions(cluster: Object) -> dict[str, Object]:
    """The cluster's conditions, by type."""
    return {condition["type"]: condition for condition in cluster.get("status", {}).get("conditions", [])}


def engines_of(cluster: Object) -> tuple[str, str]:
    """(kind, name) of what makes its engines, as arguments of kubectl: engines on several nodes are groups of pods."""
    grouped = cluster["spec"].get("engine", {}).get("nodes", 1) > 1
    kind = "leaderworkersets.leaderworkerset.x-k8s.io" if grouped else "statefulset"
    return kind, f"{cluster['metadata']['name']}-engine"
