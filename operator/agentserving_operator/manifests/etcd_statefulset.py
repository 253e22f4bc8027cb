"""An etcd of one or three members for one cluster. Pure.

The NetworkPolicy shuts others out; with TLS, so do the names that a certificate needs here.

A member of three that lost its volume joins again by itself: its init container (`etcd_member`) takes etcd's flags and
writes etcd's configuration file. A single member has no one to join, and takes the flags directly.
"""

from __future__ import annotations

from agentserving_operator.manifests.common import (
    PYTHON_ENV,
    AgentServingCluster,
    Component,
    Manifest,
    Port,
    child_object,
    container,
    http_probe,
    labels,
    listening,
    pod,
    port,
    python,
    resources_of,
    selector,
    spread,
)
from agentserving_operator.manifests.tls import Leaf, directory, etcd_client_name, mounts, volumes
from agentserving_operator.spec.crd import GROUP
from agentserving_operator.spec.store import EtcdStore

DATA_DIR = "/var/lib/etcd"
CONFIG_DIR = "/run/etcd"
CONFIG_FILE = f"{CONFIG_DIR}/etcd.json"
TRUST_ANNOTATION = f"{GROUP}/trusted-cas"


def etcd_settings(cluster: AgentServingCluster) -> EtcdStore:
    """The user's settings, or the defaults."""
    return cluster.spec.store.etcd or EtcdStore()


def peers_service(cluster: AgentServingCluster) -> str:
    """Name of the headless Service that gives members their DNS names."""
    return f"{cluster.child(Component.ETCD)}-peers"


def etcd_members(cluster: AgentServingCluster) -> list[tuple[str, str]]:
    """(name, host) of each member."""
    name = cluster.child(Component.ETCD)
    hosts = f"{peers_service(cluster)}.{cluster.namespace}.svc"
    return [(f"{name}-{i}", f"{name}-{i}.{hosts}") for i in range(etcd_settings(cluster).members)]


def etcd_endpoints(cluster: AgentServingCluster) -> tuple[str, ...]:
    """host:port of each member; the control plane tries them in turn."""
    return tuple(f"{host}:{Port.ETCD_CLIENT}" for _, host in etcd_members(cluster))


def etcd_statefulset(cluster: AgentServingCluster) -> Manifest:
    """Members start together, because none becomes ready before a majority runs."""
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


def etcd_flags(cluster: AgentServingCluster) -> list[str]:
    """Flags of one member; $(POD_NAME) stands for its name."""
    host = f"$(POD_NAME).{peers_service(cluster)}.{cluster.namespace}.svc"
    scheme = "https" if cluster.spec.tls.on else "http"
    initial = ",".join(f"{name}={scheme}://{peer}:{Port.ETCD_PEER}" for name, peer in etcd_members(cluster))
    return [
        "--name=$(POD_NAME)",
        # A subdirectory, because etcd wants it closed to others, and a volume's root belongs to the group.
        f"--data-dir={DATA_DIR}/data",
        f"--listen-client-urls={scheme}://{listening(cluster, Port.ETCD_CLIENT)}",
        f"--advertise-client-urls={scheme}://{host}:{Port.ETCD_CLIENT}",
        f"--listen-peer-urls={scheme}://{listening(cluster, Port.ETCD_PEER)}",
        f"--initial-advertise-peer-urls={scheme}://{host}:{Port.ETCD_PEER}",
        f"--initial-cluster={initial}",
        f"--initial-cluster-token={cluster.uid}",
        # Without TLS: probes have no certificate.
        f"--listen-metrics-urls=http://{listening(cluster, Port.ETCD_HTTP)}",
        # Nothing reads old revisions, and they count towards the quota.
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=5m",
        f"--quota-backend-bytes={etcd_settings(cluster).quota_mib << 20}",
        *(_tls_flags(cluster) if cluster.spec.tls.on else []),
    ]


def _tls_flags(cluster: AgentServingCluster) -> list[str]:
    """Certificates on both sides, for clients and for peers. etcd reads them again for each connection.

    The CA is not enough: it also signs the certificates of engines, gateways and clients.
    """
    at = directory(Leaf.ETCD)
    found = [
        f"--client-cert-allowed-hostname={etcd_client_name(cluster)}",
        f"--peer-cert-allowed-hostname={cluster.child(Component.ETCD)}.{cluster.namespace}.svc",
    ]
    for prefix in ("", "peer-"):
        found += [
            f"--{prefix}cert-file={at}/tls.crt", f"--{prefix}key-file={at}/tls.key",
            f"--{prefix}trusted-ca-file={at}/ca.crt", f"--{prefix}client-cert-auth",
        ]  # fmt: skip
    return found


def _template(cluster: AgentServingCluster) -> Manifest:
    several = etcd_settings(cluster).members > 1
    spec: Manifest = {
        "containers": [_etcd_container(cluster, [f"--config-file={CONFIG_FILE}"] if several else etcd_flags(cluster))],
        "terminationGracePeriodSeconds": 30,
        "topologySpreadConstraints": spread(cluster, Component.ETCD),
        "volumes": volumes(cluster, Leaf.ETCD),
    }
    if several:
        spec["initContainers"] = [_join_container(cluster)]
        spec["volumes"] += [{"name": "config", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]
    template = pod(cluster, Component.ETCD, **spec)
    if cluster.trust:
        # etcd reads its trusted CAs at its start: a changed set replaces the pods, one after the other.
        template["metadata"]["annotations"] = {TRUST_ANNOTATION: cluster.trust}
    return template


def _etcd_container(cluster: AgentServingCluster, arguments: list[str]) -> Manifest:
    config = [{"name": "config", "mountPath": CONFIG_DIR, "readOnly": True}]
    return container(
        cluster,
        "etcd",
        cluster.images.etcd,
        _resources(cluster),
        command=["etcd"],
        args=arguments,
        env=[_POD_NAME],
        ports=[port("client", Port.ETCD_CLIENT), port("peer", Port.ETCD_PEER), port("http", Port.ETCD_HTTP)],
        volumeMounts=[
            {"name": "data", "mountPath": DATA_DIR},
            *(config if etcd_settings(cluster).members > 1 else []),
            *mounts(cluster, Leaf.ETCD),
        ],
        startupProbe=http_probe(Port.ETCD_HTTP, "/readyz", periodSeconds=2, failureThreshold=150),
        readinessProbe=http_probe(Port.ETCD_HTTP, "/readyz", periodSeconds=5, timeoutSeconds=5),
        livenessProbe=http_probe(Port.ETCD_HTTP, "/livez", periodSeconds=10, timeoutSeconds=15, failureThreshold=6),
    )


_POD_NAME = {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}


def _resources(cluster: AgentServingCluster) -> Manifest:
    """Of etcd and of its init container, which runs before it and needs less."""
    settings = etcd_settings(cluster)
    # The database is mapped into memory; compaction, snapshots and clients come on top of it.
    limit = f"{2 * settings.quota_mib + 1024}Mi"
    return resources_of(
        settings.resources,
        requests={"cpu": "100m", "memory": "256Mi"},
        limits={"cpu": "4", "memory": limit},
    )


def _join_container(cluster: AgentServingCluster) -> Manifest:
    return container(
        cluster,
        "join",
        cluster.images.agentserving,
        _resources(cluster),
        **python("agentserving_operator.etcd_member", "--config-file", CONFIG_FILE, *etcd_flags(cluster)),
        env=[_POD_NAME, *PYTHON_ENV],
        volumeMounts=[
            {"name": "data", "mountPath": DATA_DIR},
            {"name": "config", "mountPath": CONFIG_DIR},
            *mounts(cluster, Leaf.ETCD),
        ],
    )
