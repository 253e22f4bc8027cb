"""An etcd of one or three members for one cluster. Pure. The NetworkPolicy keeps others off, with TLS or without."""

from __future__ import annotations

from agentserving_operator.manifests.common import (
    AgentServingCluster,
    Component,
    Manifest,
    Port,
    child_object,
    container,
    http_probe,
    labels,
    pod,
    port,
    selector,
    spread,
)
from agentserving_operator.manifests.tls import Leaf, directory, mounts, volumes
from agentserving_operator.spec.cluster import EtcdStore
from agentserving_operator.spec.crd import GROUP

DATA_DIR = "/var/lib/etcd"
TRUST_ANNOTATION = f"{GROUP}/trusted-cas"


def etcd_settings(cluster: AgentServingCluster) -> EtcdStore:
    """As the user has them."""
    return cluster.spec.store.etcd or EtcdStore()


def peers_service(cluster: AgentServingCluster) -> str:
    """The headless Service that gives members their names."""
    return f"{cluster.child(Component.ETCD)}-peers"


def etcd_members(cluster: AgentServingCluster) -> list[tuple[str, str]]:
    """(name, host) of each."""
    name = cluster.child(Component.ETCD)
    hosts = f"{peers_service(cluster)}.{cluster.namespace}.svc"
    return [(f"{name}-{i}", f"{name}-{i}.{hosts}") for i in range(etcd_settings(cluster).members)]


def etcd_endpoints(cluster: AgentServingCluster) -> tuple[str, ...]:
    """host:port of each member: the control plane tries them in turn."""
    return tuple(f"{host}:{Port.ETCD_CLIENT}" for _, host in etcd_members(cluster))


def etcd_statefulset(cluster: AgentServingCluster) -> Manifest:
    """Members start together, since none is ready before the others are there."""
    settings = etcd_settings(cluster)
    claim: Manifest = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": settings.size}}}
    if settings.storage_class_name is not None:
        claim["storageClassName"] = settings.storage_class_name
    spec = {
        "replicas": settings.members,
        "serviceName": peers_service(cluster),
        "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "RollingUpdate"},
        "selector": {"matchLabels": selector(cluster.name, Component.ETCD)},
        "template": _template(cluster),
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
        "volumeClaimTemplates": [
            {"metadata": {"name": "data", "labels": labels(cluster.name, Component.ETCD)}, "spec": claim}
        ],
    }
    return child_object(cluster, "apps/v1", "StatefulSet", Component.ETCD, spec=spec)


def _arguments(cluster: AgentServingCluster) -> list[str]:
    host = f"$(POD_NAME).{peers_service(cluster)}.{cluster.namespace}.svc"
    scheme = "https" if cluster.spec.tls.on else "http"
    initial = ",".join(f"{name}={scheme}://{peer}:{Port.ETCD_PEER}" for name, peer in etcd_members(cluster))
    return [
        "--name=$(POD_NAME)",
        # A directory of its own making: etcd wants it closed to others, a volume's root is the group's.
        f"--data-dir={DATA_DIR}/data",
        f"--listen-client-urls={scheme}://0.0.0.0:{Port.ETCD_CLIENT}",
        f"--advertise-client-urls={scheme}://{host}:{Port.ETCD_CLIENT}",
        f"--listen-peer-urls={scheme}://0.0.0.0:{Port.ETCD_PEER}",
        f"--initial-advertise-peer-urls={scheme}://{host}:{Port.ETCD_PEER}",
        f"--initial-cluster={initial}",
        f"--initial-cluster-token={cluster.uid}",
        # Probes have no certificate.
        f"--listen-metrics-urls=http://0.0.0.0:{Port.ETCD_HTTP}",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=1h",
        f"--quota-backend-bytes={etcd_settings(cluster).quota_mi_b << 20}",
        *(_tls_arguments() if cluster.spec.tls.on else []),
    ]


def _tls_arguments() -> list[str]:
    """Certificates on both sides, for clients and for peers. Certificates are read anew for each connection."""
    at = directory(Leaf.ETCD)
    found = []
    for prefix in ("", "peer-"):
        found += [
            f"--{prefix}cert-file={at}/tls.crt", f"--{prefix}key-file={at}/tls.key",
            f"--{prefix}trusted-ca-file={at}/ca.crt", f"--{prefix}client-cert-auth",
        ]  # fmt: skip
    return found


def _template(cluster: AgentServingCluster) -> Manifest:
    one = container(
        cluster,
        "etcd",
        cluster.images.etcd,
        {"requests": {"cpu": "100m", "memory": "256Mi"}},
        command=["etcd"],
        args=_arguments(cluster),
        env=[{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        ports=[port("client", Port.ETCD_CLIENT), port("peer", Port.ETCD_PEER), port("http", Port.ETCD_HTTP)],
        volumeMounts=[{"name": "data", "mountPath": DATA_DIR}, *mounts(cluster, Leaf.ETCD)],
        startupProbe=http_probe(Port.ETCD_HTTP, "/readyz", periodSeconds=2, failureThreshold=150),
        readinessProbe=http_probe(Port.ETCD_HTTP, "/readyz", periodSeconds=5, timeoutSeconds=5),
        livenessProbe=http_probe(Port.ETCD_HTTP, "/livez", periodSeconds=10, timeoutSeconds=15, failureThreshold=6),
    )
    made = pod(
        cluster,
        Component.ETCD,
        containers=[one],
        terminationGracePeriodSeconds=30,
        topologySpreadConstraints=spread(cluster, Component.ETCD),
    )
    if cluster.spec.tls.on:
        made["spec"]["volumes"] = volumes(cluster, Leaf.ETCD)
    if cluster.trust:
        # Whom to trust it reads once: other CAs are another pod, one member after the other.
        made["metadata"]["annotations"] = {TRUST_ANNOTATION: cluster.trust}
    return made
