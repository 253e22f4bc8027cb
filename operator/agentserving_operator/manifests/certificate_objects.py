"""Certificates as Kubernetes keeps them: Secrets of ours, or Certificates for cert-manager to fill. Pure."""

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
    """Mounted nowhere."""
    return f"{cluster.name}-ca"


def leaves(cluster: AgentServingCluster) -> dict[Leaf, list[str]]:
    """Those that a cluster needs, each with its names."""
    found = {
        Leaf.CONTROL_PLANE: _service_names(cluster, Component.CONTROL_PLANE),
        Leaf.ENGINE: [SIDECAR_NAME],
        Leaf.CLIENT: list[str](),
    }
    # What the clients ask for comes first.
    assert found[Leaf.CONTROL_PLANE][0] == server_name(cluster)
    if cluster.spec.store.type is StoreType.ETCD:
        # etcd takes a peer only from an address that one of its certificate's names leads to, and looks in this order.
        members = [host for _, host in etcd_members(cluster)]
        names = _service_names(cluster, Component.ETCD)
        found[Leaf.ETCD] = [*members, *names[:-1], f"{peers_service(cluster)}.{cluster.namespace}.svc", names[-1]]
    return found


def _service_names(cluster: AgentServingCluster, component: Component) -> list[str]:
    name, namespace = cluster.child(component), cluster.namespace
    found = [f"{name}.{namespace}.svc", f"{name}.{namespace}", name, f"{name}.{namespace}.svc.cluster.local"]
    # Through a forwarded port, and etcd to itself.
    return [*found, "localhost"]


def certificate(cluster: AgentServingCluster, leaf: Leaf) -> Manifest:
    """For cert-manager. The key is made anew each time, as ours are."""
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
    """The CA first: what it signs must not be there before it is kept."""
    authority = found.authority
    data = {**_pair_data(authority.ca), "ca.crt": authority.trusted}
    if authority.old is not None:
        data |= {"old.crt": authority.old.cert, "old.key": authority.old.key}
    kept = [_secret(cluster, Component.CONTROL_PLANE, ca_secret_name(cluster), data)]
    for leaf in leaves(cluster):
        data = {**_pair_data(found.leaves[leaf]), "ca.crt": authority.trusted}
        kept.append(_secret(cluster, _OWNERS[leaf], secret_name(cluster.name, leaf), data))
    return kept


def _pair_data(pair: Pair) -> dict[str, bytes]:
    return {"tls.crt": pair.cert, "tls.key": pair.key}


def _secret(cluster: AgentServingCluster, component: Component, name: str, data: Mapping[str, bytes]) -> Manifest:
    encoded = {key: base64.b64encode(each).decode() for key, each in data.items()}
    return child_object(cluster, "v1", "Secret", component, name, type="kubernetes.io/tls", data=encoded)


def content(secret: Manifest | None, key: str) -> bytes | None:
    """Of a Secret; None when it has none that can be read."""
    data: Mapping[str, Any] = (secret or {}).get("data") or {}
    try:
        return base64.b64decode(data[key], validate=True)
    except (KeyError, TypeError, binascii.Error):
        return None


def pair_of(secret: Manifest | None, prefix: str = "tls") -> Pair | None:
    """What a Secret holds."""
    cert, key = content(secret, f"{prefix}.crt"), content(secret, f"{prefix}.key")
    return None if cert is None or key is None else Pair(cert, key)


def authority_of(secret: Manifest | None) -> Authority | None:
    """The CA that is kept."""
    ca = pair_of(secret)
    return None if ca is None else Authority(ca, pair_of(secret, "old"))
