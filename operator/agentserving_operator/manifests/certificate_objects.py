"""Certificates as Kubernetes objects: our own Secrets, or Certificates that cert-manager fills. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from agentserving.contract.names import SIDECAR_NAME

from agentserving_operator.certificates.values import LEAF_LIFE, Authority, Certificates, Pair, is_uri
from agentserving_operator.manifests.common import (
    AgentServingCluster,
    Component,
    Manifest,
    child_object,
    keys_are_needed,
)
from agentserving_operator.manifests.etcd_statefulset import etcd_members, peers_service
from agentserving_operator.manifests.tls import (
    Leaf,
    engine_identity,
    engines_secret_name,
    etcd_client_name,
    identity,
    secret_name,
    server_name,
)
from agentserving_operator.spec.parsing import plain
from agentserving_operator.spec.store import StoreType

_OWNERS = {
    Leaf.CONTROL_PLANE: Component.CONTROL_PLANE,
    Leaf.ETCD: Component.ETCD,
    Leaf.GATEWAY: Component.GATEWAY,
    Leaf.OPERATOR: Component.CONTROL_PLANE,
    Leaf.ADMIN: Component.CONTROL_PLANE,
    Leaf.CLIENT: Component.CONTROL_PLANE,
}


def ca_secret_name(cluster: AgentServingCluster) -> str:
    """Name of the CA's Secret, which no pod mounts."""
    return f"{cluster.name}-ca"


def leaves(cluster: AgentServingCluster) -> dict[Leaf, list[str]]:
    """The certificates that a cluster needs besides those of its engines, with the names and the URI in each."""
    found: dict[Leaf, list[str]] = {leaf: identity(cluster, leaf) for leaf in Leaf if leaf is not Leaf.ETCD}
    with_etcd = cluster.spec.store.type is StoreType.ETCD
    # The name that clients verify comes first.
    names = _service_names(cluster, Component.CONTROL_PLANE)
    assert names[0] == server_name(cluster)
    if keys_are_needed(cluster):
        names.append(f"{cluster.child(Component.CONTROL_PLANE)}-clients.{cluster.namespace}.svc")
    found[Leaf.CONTROL_PLANE][:0] = [*names, *([etcd_client_name(cluster)] if with_etcd else [])]
    if with_etcd:
        # etcd accepts a peer only if a name in its certificate resolves to its address, and tries them in this order.
        members = [host for _, host in etcd_members(cluster)]
        names = _service_names(cluster, Component.ETCD)
        found[Leaf.ETCD] = [
            *members, *names[:-1], f"{peers_service(cluster)}.{cluster.namespace}.svc", names[-1],
            etcd_client_name(cluster),
        ]  # fmt: skip
    return found


def engine_leaves(cluster: AgentServingCluster) -> dict[str, list[str]]:
    """The certificates of the engines by engine id. Sidecars are clients and servers."""
    name = cluster.child(Component.ENGINE)
    ids = [f"{name}-{number}" for number in range(cluster.spec.engine.replicas)]
    return {engine_id: [SIDECAR_NAME, engine_identity(cluster, engine_id)] for engine_id in ids}


def all_leaves(cluster: AgentServingCluster) -> dict[str, list[str]]:
    """Names of all certificates. Those of engines are called engine/<id>."""
    engines = {leaf_of_engine(each): names for each, names in engine_leaves(cluster).items()}
    return {leaf.value: names for leaf, names in leaves(cluster).items()} | engines


def leaf_of_engine(engine_id: str) -> str:
    """What the certificate of an engine is called among all certificates."""
    return f"engine/{engine_id}"


def _service_names(cluster: AgentServingCluster, component: Component) -> list[str]:
    name, namespace = cluster.child(component), cluster.namespace
    found = [f"{name}.{namespace}.svc", f"{name}.{namespace}", name, f"{name}.{namespace}.svc.cluster.local"]
    # For forwarded ports, and for etcd's requests to itself.
    return [*found, "localhost"]


def certificates(cluster: AgentServingCluster) -> list[Manifest]:
    """Certificates for cert-manager, of all leaves."""
    found = [
        _certificate(cluster, leaf.value, _OWNERS[leaf], secret_name(cluster.name, leaf), names)
        for leaf, names in leaves(cluster).items()
    ]
    return found + [
        _certificate(cluster, "engine", Component.ENGINE, engine_secret_name(engine_id), names)
        for engine_id, names in engine_leaves(cluster).items()
    ]


def engine_secret_name(engine_id: str) -> str:
    """The Secret that cert-manager fills for one engine; no pod mounts it."""
    return f"{engine_id}-tls"


def _certificate(
    cluster: AgentServingCluster, leaf: str, owner: Component, secret: str, names: list[str]
) -> Manifest:  # fmt: skip
    """Each renewal creates a new key, as ours do."""
    hosts, uris = [each for each in names if not is_uri(each)], [each for each in names if is_uri(each)]
    spec: Manifest = {
        "secretName": secret,
        "commonName": f"agentserving {leaf}",
        "duration": f"{_hours(1)}h0m0s",
        "renewBefore": f"{_hours(3)}h0m0s",
        "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
        "usages": ["digital signature", "client auth", *(["server auth"] if hosts else [])],
        "issuerRef": {**plain(cluster.spec.tls.issuer_ref), "group": "cert-manager.io"},
    }
    if hosts:
        spec["dnsNames"] = hosts
    if uris:
        spec["uris"] = uris
    return child_object(cluster, "cert-manager.io/v1", "Certificate", owner, secret, spec=spec)


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
    pairs = {engine_id: found.leaves[leaf_of_engine(engine_id)] for engine_id in engine_leaves(cluster)}
    return [*stored, engines_secret(cluster, authority.trusted, pairs)]


def engines_secret(cluster: AgentServingCluster, trusted: bytes, pairs: Mapping[str, Pair]) -> Manifest:
    """The certificates of all engines, by engine id. 256 of them are about 400 kB of the 1 MiB that a Secret holds."""
    data = {"ca.crt": trusted}
    for engine_id, pair in pairs.items():
        data |= {f"{engine_id}.crt": pair.cert, f"{engine_id}.key": pair.key}
    return _secret(cluster, Component.ENGINE, engines_secret_name(cluster.name), data, "Opaque")


def _pair_data(pair: Pair) -> dict[str, bytes]:
    return {"tls.crt": pair.cert, "tls.key": pair.key}


def _secret(
    cluster: AgentServingCluster, component: Component, name: str, data: Mapping[str, bytes],
    kind: str = "kubernetes.io/tls",
) -> Manifest:  # fmt: skip
    encoded = {key: base64.b64encode(each).decode() for key, each in data.items()}
    return child_object(cluster, "v1", "Secret", component, name, type=kind, data=encoded)


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
    ca = pair_of(secret)
    return None if ca is None else Authority(ca, pair_of(secret, "old"))
