"""Certificates in pods: who has which, where they are mounted, and the flags that name them. Pure.

A cluster has four. Clients connect to control planes by pod address, which no certificate can contain, so they verify
the name of the Service instead. The client certificate has no names, because no server uses it.
"""

from __future__ import annotations

from enum import StrEnum

from agentserving_operator.manifests.common import AgentServingCluster, Component, Manifest, secret_volume

ROOT = "/etc/agentserving"


class Leaf(StrEnum):
    """Owner of a certificate; also part of its Secret's name."""

    CONTROL_PLANE = "control-plane"
    ETCD = "etcd"
    # Sidecars, which are clients and servers.
    ENGINE = "engine"
    # Gateways, the operator, people, and control planes as clients of etcd.
    CLIENT = "client"


def secret_name(cluster_name: str, leaf: Leaf) -> str:
    """Name of the Secret: of type kubernetes.io/tls, with a ca.crt."""
    return f"{cluster_name}-{leaf}-tls"


def server_name(cluster: AgentServingCluster) -> str:
    """The name that clients verify in a control plane's certificate."""
    return f"{cluster.child(Component.CONTROL_PLANE)}.{cluster.namespace}.svc"


def directory(leaf: Leaf) -> str:
    """Where the Secret is mounted."""
    return f"{ROOT}/{leaf}-tls"


def volumes(cluster: AgentServingCluster, *leaves: Leaf) -> list[Manifest]:
    """Volumes of these certificates; none without TLS."""
    if not cluster.spec.tls.on:
        return []
    return [secret_volume(f"{leaf}-tls", secret_name(cluster.name, leaf)) for leaf in leaves]


def mounts(cluster: AgentServingCluster, *leaves: Leaf) -> list[Manifest]:
    """Mounts of these certificates; none without TLS. Directories, because kubelet never updates single files."""
    if not cluster.spec.tls.on:
        return []
    return [{"name": f"{leaf}-tls", "mountPath": directory(leaf), "readOnly": True} for leaf in leaves]


def flags(leaf: Leaf, prefix: str = "--tls") -> list[str]:
    """Flags of one of our components."""
    at = directory(leaf)
    return [f"{prefix}-ca", f"{at}/ca.crt", f"{prefix}-cert", f"{at}/tls.crt", f"{prefix}-key", f"{at}/tls.key"]


def client_flags(cluster: AgentServingCluster, leaf: Leaf = Leaf.CLIENT) -> list[str]:
    """Flags of clients of control planes."""
    return [*flags(leaf), "--tls-server-name", server_name(cluster)] if cluster.spec.tls.on else []
