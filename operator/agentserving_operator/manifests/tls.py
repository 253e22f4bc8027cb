"""Certificates in pods: whose, where they lie, and which flags name them. Pure.

Four for a cluster. Pods are dialled by addresses that no certificate can know, so whoever dials a control plane asks
for the name of its Service. The client's has no names: it is shown from many places, and nobody is dialled by it.
"""

from __future__ import annotations

from enum import StrEnum

from agentserving_operator.manifests.common import AgentServingCluster, Component, Manifest, secret_volume

ROOT = "/etc/agentserving"


class Leaf(StrEnum):
    """Whose certificate; also part of its Secret's name."""

    CONTROL_PLANE = "control-plane"
    ETCD = "etcd"
    # Of sidecars, which are clients and servers.
    ENGINE = "engine"
    # Of gateways, the operator, people, and of control planes towards etcd.
    CLIENT = "client"


def secret_name(cluster_name: str, leaf: Leaf) -> str:
    """Of kubernetes.io/tls, with ca.crt beside."""
    return f"{cluster_name}-{leaf}-tls"


def server_name(cluster: AgentServingCluster) -> str:
    """What a control plane's certificate is asked for."""
    return f"{cluster.child(Component.CONTROL_PLANE)}.{cluster.namespace}.svc"


def directory(leaf: Leaf) -> str:
    """Where it is mounted."""
    return f"{ROOT}/{leaf}-tls"


def volumes(cluster: AgentServingCluster, *leaves: Leaf) -> list[Manifest]:
    """None where there is no TLS."""
    if not cluster.spec.tls.on:
        return []
    return [secret_volume(f"{leaf}-tls", secret_name(cluster.name, leaf)) for leaf in leaves]


def mounts(cluster: AgentServingCluster, *leaves: Leaf) -> list[Manifest]:
    """None where there is no TLS. Whole directories: files mounted by themselves are never renewed."""
    if not cluster.spec.tls.on:
        return []
    return [{"name": f"{leaf}-tls", "mountPath": directory(leaf), "readOnly": True} for leaf in leaves]


def flags(leaf: Leaf, prefix: str = "--tls") -> list[str]:
    """Of a component of ours."""
    at = directory(leaf)
    return [f"{prefix}-ca", f"{at}/ca.crt", f"{prefix}-cert", f"{at}/tls.crt", f"{prefix}-key", f"{at}/tls.key"]


def client_flags(cluster: AgentServingCluster, leaf: Leaf = Leaf.CLIENT) -> list[str]:
    """Of those who dial control planes."""
    return [*flags(leaf), "--tls-server-name", server_name(cluster)] if cluster.spec.tls.on else []
