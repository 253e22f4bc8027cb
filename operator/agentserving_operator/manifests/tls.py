"""Certificates in pods: who has which, where they are mounted, and the flags that name them. Pure.

Each part has a certificate of its own whose URI names its role (contract/identity.py), so that a stolen one opens only
what its owner may do. Clients connect to control planes by pod address, which no certificate can contain, so they
verify the name of the Service instead.

Engines are the pods of one StatefulSet, and all of them mount the same Secret, which therefore contains a certificate
for each engine. The container `identity` copies the pod's own one to a volume that the sidecar mounts, and with
`tls.engines` the engine, which serves by it; neither sees the others (see engine_identity.py).
"""

from __future__ import annotations

from enum import StrEnum

from agentserving.contract.identity import Identity, Role

from agentserving_operator.manifests.common import AgentServingCluster, Component, Manifest, secret_volume

ROOT = "/etc/agentserving"
# The volumes of an engine pod: all engines' certificates, and the pod's own.
ENGINES_DIR, ENGINE_DIR = f"{ROOT}/engine-identities", f"{ROOT}/engine-tls"
# The directory that is replaced as a whole when the engine's certificate is renewed.
ENGINE_CURRENT_DIR = f"{ENGINE_DIR}/current"
# The same files, written in place, for an engine that serves by TLS.
ENGINE_SERVED_DIR = f"{ENGINE_DIR}/served"


class Leaf(StrEnum):
    """Owner of a certificate; also part of its Secret's name."""

    CONTROL_PLANE = "control-plane"
    ETCD = "etcd"
    GATEWAY = "gateway"
    OPERATOR = "operator"
    # People with rights on the whole cluster, and `kubectl agentserving`.
    ADMIN = "admin"
    # Programs. It has no role: the control plane also asks for a key, unless it does not authenticate callers.
    CLIENT = "client"


_ROLES = {
    Leaf.CONTROL_PLANE: Role.CONTROL_PLANE,
    Leaf.GATEWAY: Role.GATEWAY,
    Leaf.OPERATOR: Role.OPERATOR,
    Leaf.ADMIN: Role.ADMIN,
}


def identity(cluster: AgentServingCluster, leaf: Leaf) -> list[str]:
    """The URI of a leaf's role; none for a leaf without one."""
    role = _ROLES.get(leaf)
    return [] if role is None else [_uri(cluster, role)]


def engine_identity(cluster: AgentServingCluster, engine_id: str) -> str:
    """The URI of the sidecar of one engine."""
    return _uri(cluster, Role.SIDECAR, engine_id)


def _uri(cluster: AgentServingCluster, role: Role, name: str = "") -> str:
    return Identity(namespace=cluster.namespace, cluster=cluster.name, role=role, name=name).uri


def secret_name(cluster_name: str, leaf: Leaf) -> str:
    """Name of the Secret: of type kubernetes.io/tls, with a ca.crt."""
    return f"{cluster_name}-{leaf}-tls"


def engines_secret_name(cluster_name: str) -> str:
    """Name of the Secret with the certificates of all engines: ca.crt, and <engine id>.crt and .key of each."""
    return f"{cluster_name}-engine-identities"


def server_name(cluster: AgentServingCluster) -> str:
    """The name that clients verify in a control plane's certificate."""
    return f"{cluster.child(Component.CONTROL_PLANE)}.{cluster.namespace}.svc"


def etcd_client_name(cluster: AgentServingCluster) -> str:
    """The name without which a certificate opens nothing at etcd; control planes have it, and etcd's own members."""
    return f"etcd-client.{cluster.name}.{cluster.namespace}.agentserving.internal"


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


def engine_volumes(cluster: AgentServingCluster) -> list[Manifest]:
    """All engines' certificates, and a place for the pod's own; none without TLS."""
    if not cluster.spec.tls.on:
        return []
    own = {"name": "engine-tls", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}
    return [secret_volume("engine-identities", engines_secret_name(cluster.name)), own]


def flags(at: str, prefix: str = "--tls") -> list[str]:
    """Flags of one of our components, for the files in a directory."""
    return [f"{prefix}-ca", f"{at}/ca.crt", f"{prefix}-cert", f"{at}/tls.crt", f"{prefix}-key", f"{at}/tls.key"]


def to_engines_flags(cluster: AgentServingCluster, at: str) -> list[str]:
    """Flags of clients of engines, with their own certificate; none where engines speak http."""
    return flags(at, "--engine") if cluster.spec.tls.engines else []


def client_flags(cluster: AgentServingCluster, at: str) -> list[str]:
    """Flags of clients of control planes; none without TLS."""
    return [*flags(at), "--tls-server-name", server_name(cluster)] if cluster.spec.tls.on else []
