"""The Deployment of the control planes. Pure.

Followers are ready as well: a rollout continues past them, and a client that the Service sends to a follower gets the
leader's address from it. So the Service selects all of them, and no label has to move with the leadership.
"""

from __future__ import annotations

from agentserving.contract.budgets import text_of

from agentserving_operator.manifests.common import (
    ALIVE,
    PYTHON_ENV,
    STARTED,
    AgentServingCluster,
    Component,
    Manifest,
    Port,
    any_host,
    child_object,
    container,
    http_probe,
    keys_are_needed,
    listening,
    pod,
    pod_address,
    port,
    python,
    resources_of,
    secret_volume,
    selector,
    spread,
)
from agentserving_operator.manifests.engine_pod import KEY_DIR, KEY_FILE
from agentserving_operator.manifests.etcd_statefulset import etcd_endpoints, etcd_settings
from agentserving_operator.manifests.metrics_token import (
    metrics_token_flags,
    metrics_token_mounts,
    metrics_token_volumes,
)
from agentserving_operator.manifests.tls import Leaf, directory, flags, mounts, volumes
from agentserving_operator.manifests.web_tokens import token_flags, token_mounts, token_volumes
from agentserving_operator.spec.budgets import to_budget
from agentserving_operator.spec.store import StoreType

# A leader that cannot reach etcd for this long stops leading. A single control plane has no one to hand over to, and a
# single etcd member that moves to another node needs about half a minute.
LEASE_S, LEASE_ALONE_S = 5, 30
# Certificates of an external etcd.
TLS_DIR = "/etc/agentserving/etcd-tls"


def control_plane_deployment(cluster: AgentServingCluster) -> Manifest:
    """The policy is not an argument: it is applied over gRPC, so that a change restarts nothing."""
    spec = {
        "replicas": cluster.spec.control_plane.replicas,
        "strategy": _strategy(cluster),
        "selector": {"matchLabels": selector(cluster.name, Component.CONTROL_PLANE)},
        "template": _template(cluster),
    }
    return child_object(cluster, "apps/v1", "Deployment", Component.CONTROL_PLANE, spec=spec)


def _strategy(cluster: AgentServingCluster) -> Manifest:
    if cluster.spec.store.type is StoreType.MEMORY:
        # Two replicas would have two tables.
        return {"type": "Recreate"}
    # The new one stands by until the old one terminates, and then leads immediately.
    return {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


def _template(cluster: AgentServingCluster) -> Manifest:
    there = [secret_volume("ticket-key", cluster.ticket_key_name), {"name": "tmp", "emptyDir": {}}]
    mounted: list[Manifest] = [
        {"name": "ticket-key", "mountPath": KEY_DIR, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    external = cluster.spec.store.external
    if external is not None and external.tls_secret_name is not None:
        there.append(secret_volume("etcd-tls", external.tls_secret_name))
        mounted.append({"name": "etcd-tls", "mountPath": TLS_DIR, "readOnly": True})
    one = container(
        cluster,
        "control-plane",
        cluster.images.agentserving,
        resources_of(cluster.spec.control_plane.resources, requests={"cpu": "250m", "memory": "256Mi"}),
        **python("agentserving_controlplane", *_arguments(cluster)),
        env=[{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}, *PYTHON_ENV],
        ports=[
            port("grpc", Port.CONTROL_PLANE),
            port("streams", Port.CONTROL_PLANE_STREAMS),
            *([port("clients", Port.CONTROL_PLANE_CLIENTS)] if keys_are_needed(cluster) else []),
            port("http", Port.CONTROL_PLANE_HTTP),
        ],
        volumeMounts=[
            *mounted,
            *metrics_token_mounts(cluster),
            *token_mounts(cluster),
            *mounts(cluster, Leaf.CONTROL_PLANE),
        ],
        startupProbe=http_probe(Port.CONTROL_PLANE_HTTP, "/healthz", **STARTED),
        readinessProbe=http_probe(Port.CONTROL_PLANE_HTTP, "/readyz", periodSeconds=2, timeoutSeconds=2),
        livenessProbe=http_probe(Port.CONTROL_PLANE_HTTP, "/healthz", **ALIVE),
    )
    return pod(
        cluster,
        Component.CONTROL_PLANE,
        containers=[one],
        volumes=[
            *there,
            *metrics_token_volumes(cluster),
            *token_volumes(cluster),
            *volumes(cluster, Leaf.CONTROL_PLANE),
        ],
        terminationGracePeriodSeconds=30,
        topologySpreadConstraints=spread(cluster, Component.CONTROL_PLANE),
    )


def _arguments(cluster: AgentServingCluster) -> list[str]:
    return [
        "--listen", listening(cluster, Port.CONTROL_PLANE), "--advertise", pod_address(cluster, Port.CONTROL_PLANE),
        "--streams-listen", listening(cluster, Port.CONTROL_PLANE_STREAMS),
        "--lease-s", str(LEASE_S if cluster.spec.control_plane.replicas > 1 else LEASE_ALONE_S),
        "--http-host", any_host(cluster), "--http-port", str(Port.CONTROL_PLANE_HTTP), *metrics_token_flags(cluster),
        "--ticket-key-file", KEY_FILE,
        "--program-idle-s", str(cluster.spec.control_plane.program_idle_seconds), *_budget_arguments(cluster),
        "--service-class", cluster.spec.control_plane.service_class.value.lower(),
        *(flags(directory(Leaf.CONTROL_PLANE)) if cluster.spec.tls.on else []),
        *_access_arguments(cluster),
        *_store_arguments(cluster),
    ]  # fmt: skip


def _budget_arguments(cluster: AgentServingCluster) -> list[str]:
    budget = to_budget(cluster.spec.control_plane.program_budget)
    return ["--default-budget", text_of(budget)] if budget else []


def _access_arguments(cluster: AgentServingCluster) -> list[str]:
    """Two ports: --listen for the parts, whose certificates name their roles, and one for clients with keys."""
    if not keys_are_needed(cluster):
        return []
    return [
        "--client-auth", "keys", "--cluster", f"{cluster.namespace}/{cluster.name}",
        "--clients-listen", listening(cluster, Port.CONTROL_PLANE_CLIENTS),
        "--clients-advertise", pod_address(cluster, Port.CONTROL_PLANE_CLIENTS), *token_flags(cluster),
    ]  # fmt: skip


def _store_arguments(cluster: AgentServingCluster) -> list[str]:
    store = cluster.spec.store
    if store.type is StoreType.MEMORY:
        return ["--store", "memory"]
    external = store.external
    prefix = (external.prefix if external else None) or f"/agentserving/{cluster.namespace}/{cluster.name}"
    endpoints = external.endpoints if external else etcd_endpoints(cluster)
    found = ["--store", "etcd", "--etcd-endpoints", ",".join(endpoints), "--etcd-prefix", prefix]
    if external is None:
        # etcd says its quota from 3.6 on only.
        found += ["--etcd-quota-bytes", str(etcd_settings(cluster).quota_mib << 20)]
    if external is None and cluster.spec.tls.on:
        found += flags(directory(Leaf.CONTROL_PLANE), "--etcd-tls")
    if external is not None and external.tls_secret_name is not None:
        found += ["--etcd-tls-ca", f"{TLS_DIR}/ca.crt"]
        if external.client_certificate:
            found += ["--etcd-tls-cert", f"{TLS_DIR}/tls.crt", "--etcd-tls-key", f"{TLS_DIR}/tls.key"]
    return found
