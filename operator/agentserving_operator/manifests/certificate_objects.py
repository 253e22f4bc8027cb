"""Certificates as Kubernetes objects: our own Secrets, or Certificates that cert-manager fills. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from agentserving.contract.names import SIDECAR_NAME

from agentserving_operator.certificates.values import LEAF_LIFE, Authority, Certificates, Pair
from agentserving_operator.manifests.common import AgentServingCluster, Component, Manifest, child_object
from agentserving_operator.manifests.etcd_statefulset import etcd_members, peers_service
from agentserving_operator.manifests.tls import Leaf, secret_name, server_name
from agentserving_operator.spec.cluster import StoreType
from agentserving_operator.spec.parsing import plain

_OWNERS = {
    Leaf.CONTROL_PLANE: Component.CONTROL_PLANE,
    Leaf.ETCD: Component.ETCD,
    Leaf.ENGINE: Component.ENGINE,
    Leaf.CLIENT: Component.CONTROL_PLANE,
}


def ca_secret_name(cluster: AgentServingCluster) -> str:
    """Name of the CA's Secret, which no pod mounts."""
    return f"{cluster.name}-ca"


def leaves(cluster: AgentServingCluster) -> dict[Leaf, list[str]]:
    """The certificates that a cluster needs, with the names in each."""
    found = {
        Leaf.CONTROL_PLANE: _service_names(cluster, Component.CONTROL_PLANE),
        Leaf.ENGINE: [SIDECAR_NAME],
        Leaf.CLIENT: list[str](),
    }
    # The name that clients verify comes first.
    assert found[Leaf.CONTROL_PLANE][0] == server_name(cluster)
    if cluster.spec.store.type is StoreType.ETCD:
        # etcd accepts a peer only if a name in its certificate resolves to its address, and tries them in this order.
        members = [host for _, host in etcd_members(cluster)]
        names = _service_names(cluster, Component.ETCD)
        found[Leaf.ETCD] = [*members, *names[:-1], f"{peers_service(cluster)}.{cluster.namespace}.svc", names[-1]]
    return found


def _service_names(cluster: AgentServingCluster, component: Component) -> list[str]:
    name, namespace = cluster.child(component), cluster.namespace
    found = [f"{name}.{namespace}.svc", f"{name}.{namespace}", name, f"{name}.{namespace}.svc.cluster.local"]
    # For forwarded ports, and for etcd's requests to itself.
    return [*found, "localhost"]


def certificate(cluster: AgentServingCluster, leaf: Leaf) -> Manifest:
    """A Certificate for cert-manager. Each renewal creates a new key, as ours do."""
    reference = cluster.spec.tls.issuer_ref
    hosts = leaves(cluster)[leaf]
    spec: Manifest = {
        "secretName": secret_name(cluster.name, leaf),
        "commonName": f"agentserving {leaf}",
        "duration": f"{_hours(1)}h0m0s",
        "renewBefore": f"{_hours(3)}h0m0s",
        "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
        "usages": ["digital signature", "client auth", *(["server auth"] if hosts else [])],
        "issuerRef": {**plain(reference), "group": "cert-manager.io"},
    }
    if hosts:
        spec["dnsNames"] = hosts
    name = secret_name(cluster.name, leaf)
    return child_object(cluster, "cert-manager.io/v1", "Certificate", _OWNERS[leaf], name, spec=spec)


def _hours(divisor: int) -> int:
    return int(LEAF_LIFE.total_seconds()) // 3600 // divisor


def secrets(cluster: AgentServingCluster, found: Certificates) -> list[Manifest]:
    """The CA first: nothing that it signed may be stored before it is."""
    authority = found.authority
    data = {**_pair_data(authority.ca), "ca.crt": authority.trusted}
    if authority.old is not None:
        data |= {"old.crt": authority.old.cert, "old.key": authority.old.key}
    stored = [_secret(cluster, Component.CONTROL_PLANE, ca_secret_name(cluster), data)]
    for leaf in leaves(cluster):
        data = {**_pair_data(found.leaves[leaf]), "ca.crt": authority.trusted}
        stored.append(_secret(cluster, _OWNERS[leaf], secret_name(cluster.name, leaf), data))
    return stored


def _pair_data(pair: Pair) -> dict[str, bytes]:
    return {"tls.crt": pair.cert, "tls.key": pair.key}


def _secret(cluster: AgentServingCluster, component: Component, name: str, data: Mapping[str, bytes]) -> Manifest:
    encoded = {key: base64.b64encode(each).decode() for key, each in data.items()}
    return child_object(cluster, "v1", "Secret", component, name, type="kubernetes.io/tls", data=encoded)


def content(secret: Manifest | None, key: str) -> bytes | None:
    """A decoded entry of a Secret; None when it is missing or invalid."""
    data: Mapping[str, Any] = (secret or {}).get("data") or {}
    try:
        return base64.b64decode(data[key], validate=True)
    except (KeyError, TypeError, binascii.Error):
        return None


def pair_of(secret: Manifest | None, prefix: str = "tls") -> Pair | None:
    """The certificate and key in a Secret; None when one is missing."""
    cert, key = content(secret, f"{prefix}.crt"), content(secret, f"{prefix}.key")
    return None if cert is None or key is None else Pair(cert, key)


def authority_of(secret: Manifest | None) -> Authority | None:
    """The CA in a Secret."""
    ca = pair_of(secret)
    return None if ca is None else Authority(ca, pair_of(secret, "old"))
