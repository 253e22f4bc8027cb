"""The Deployment of the gateways. Pure."""

from __future__ import annotations

from agentserving_operator.manifests.common import (
    ALIVE,
    PYTHON_ENV,
    STARTED,
    AgentServingCluster,
    Component,
    Manifest,
    Port,
    child_object,
    container,
    http_probe,
    pod,
    port,
    python,
    resources_of,
    selector,
    spread,
)
from agentserving_operator.manifests.tls import Leaf, client_flags, mounts, volumes

STATE_DIR = "/var/lib/agentserving"
GRACE_AFTER_DRAIN_S = 15


def gateway_deployment(cluster: AgentServingCluster) -> Manifest:
    """Gateways are replaced one at a time; the new one starts first."""
    spec = {
        "replicas": cluster.spec.gateway.replicas,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "selector": {"matchLabels": selector(cluster.name, Component.GATEWAY)},
        "template": _template(cluster),
    }
    return child_object(cluster, "apps/v1", "Deployment", Component.GATEWAY, spec=spec)


def _template(cluster: AgentServingCluster) -> Manifest:
    gateway = cluster.spec.gateway
    command = python(
        "agentserving_gateway",
        "--listen", f"0.0.0.0:{Port.GATEWAY}",
        "--control-plane", cluster.address(Component.CONTROL_PLANE, Port.CONTROL_PLANE),
        "--http-host", "0.0.0.0", "--http-port", str(Port.GATEWAY_HTTP),
        "--state-dir", STATE_DIR, "--max-body-bytes", str(gateway.max_body_bytes),
        "--drain-s", str(gateway.drain_seconds), *client_flags(cluster),
    )  # fmt: skip
    one = container(
        cluster,
        "gateway",
        cluster.images.agentserving,
        resources_of(gateway.resources, requests={"cpu": "250m", "memory": "128Mi"}),
        **command,
        env=[*PYTHON_ENV],
        ports=[port("http", Port.GATEWAY), port("probes", Port.GATEWAY_HTTP)],
        volumeMounts=[
            {"name": "state", "mountPath": STATE_DIR},
            {"name": "tmp", "mountPath": "/tmp"},
            *mounts(cluster, Leaf.CLIENT),
        ],
        startupProbe=http_probe(Port.GATEWAY_HTTP, "/healthz", **STARTED),
        readinessProbe=http_probe(Port.GATEWAY_HTTP, "/readyz", periodSeconds=2, timeoutSeconds=2),
        livenessProbe=http_probe(Port.GATEWAY_HTTP, "/healthz", **ALIVE),
    )
    return pod(
        cluster,
        Component.GATEWAY,
        containers=[one],
        volumes=[
            {"name": "state", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            *volumes(cluster, Leaf.CLIENT),
        ],
        terminationGracePeriodSeconds=gateway.drain_seconds + GRACE_AFTER_DRAIN_S,
        topologySpreadConstraints=spread(cluster, Component.GATEWAY),
    )
