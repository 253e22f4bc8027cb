"""The Deployment of the gateways: in each pod an Envoy and its picker. Pure."""

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
    keys_are_needed,
    memory_limit,
    pod,
    port,
    python,
    resources_of,
    secret_files,
    selector,
    spread,
)
from agentserving_operator.manifests.engine_pod import KEY_DIR
from agentserving_operator.manifests.inference_pool import picker_flags
from agentserving_operator.manifests.metrics_token import token_flags, token_mounts, token_volumes
from agentserving_operator.manifests.tls import Leaf, client_flags, directory, mounts, volumes
from agentserving_operator.spec.parsing import plain
from agentserving_operator.spec.parts import Resources

# Sockets and files that Envoy and the picker share.
RUN_DIR = "/run/agentserving"
# Of the Secret of ticket keys, the gateways' own.
GATEWAY_KEY_FILE = f"{KEY_DIR}/gateway-key"
GATEWAY_KEYS = ("gateway-key", "gateway-key.next", "gateway-key.previous")
GRACE_AFTER_DRAIN_S = 15
# Of a container's memory limit; the rest is what Envoy has outside of its heap.
HEAP_SHARE_PERCENT = 80


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
    return pod(
        cluster,
        Component.GATEWAY,
        containers=[_envoy(cluster), _picker(cluster)],
        volumes=[
            {"name": "run", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            *_ticket_key_volume(cluster),
            *token_volumes(cluster),
            *volumes(cluster, Leaf.GATEWAY),
        ],
        terminationGracePeriodSeconds=gateway.drain_seconds + GRACE_AFTER_DRAIN_S,
        topologySpreadConstraints=spread(cluster, Component.GATEWAY),
    )


def _envoy(cluster: AgentServingCluster) -> Manifest:
    gateway = cluster.spec.gateway
    drain = ["python", "-m", "agentserving_gateway.drain"]
    return container(
        cluster,
        "gateway",
        cluster.images.agentserving,
        resources_of(gateway.resources, requests={"cpu": "250m", "memory": "128Mi"}),
        **python(
            "agentserving_gateway.front",
            "--listen", f"0.0.0.0:{Port.GATEWAY}", "--run-dir", RUN_DIR, *_client_auth(cluster),
            "--max-body-bytes", str(gateway.max_body_bytes), *_heap(gateway.resources),
        ),
        env=[*PYTHON_ENV],
        ports=[port("http", Port.GATEWAY)],
        volumeMounts=[{"name": "run", "mountPath": RUN_DIR}],
        # A SIGTERM alone cuts Envoy's streams.
        lifecycle={
            "preStop": {
                "exec": {"command": [*drain, "--run-dir", RUN_DIR, "--drain-s", str(gateway.drain_seconds)]}
            }
        },
        startupProbe=http_probe(Port.GATEWAY, "/health", **STARTED),
        readinessProbe=http_probe(Port.GATEWAY, "/health", periodSeconds=2, timeoutSeconds=2),
        livenessProbe=http_probe(Port.GATEWAY, "/health", **ALIVE),
    )  # fmt: skip


def _client_auth(cluster: AgentServingCluster) -> list[str]:
    return ["--client-auth", "keys"] if keys_are_needed(cluster) else []


def _own_tickets(cluster: AgentServingCluster) -> list[str]:
    """With keys engines refuse calls without a ticket, and some are made while there is no control plane."""
    return ["--ticket-key-file", GATEWAY_KEY_FILE] if keys_are_needed(cluster) else []


def _ticket_key_volume(cluster: AgentServingCluster) -> list[Manifest]:
    return [secret_files("ticket-key", cluster.ticket_key_name, GATEWAY_KEYS)] if keys_are_needed(cluster) else []


def _ticket_key_mount(cluster: AgentServingCluster) -> list[Manifest]:
    mount = {"name": "ticket-key", "mountPath": KEY_DIR, "readOnly": True}
    return [mount] if keys_are_needed(cluster) else []


def _heap(given: Resources) -> list[str]:
    """Envoy refuses requests before its container's limit kills it; without a limit its own default applies."""
    limit = memory_limit(given)
    return [] if limit is None else ["--max-heap-mib", str(max(64, limit * HEAP_SHARE_PERCENT // 100 >> 20))]


def _picker(cluster: AgentServingCluster) -> Manifest:
    gateway = cluster.spec.gateway
    return container(
        cluster,
        "picker",
        cluster.images.agentserving,
        # A quota on limits that admits the one must admit the other.
        resources_of(
            gateway.picker_resources if plain(gateway.picker_resources) else gateway.resources,
            requests={"cpu": "250m", "memory": "128Mi"},
        ),
        **python(
            "agentserving_gateway",
            "--run-dir", RUN_DIR, "--drain-s", str(gateway.drain_seconds),
            "--control-plane", cluster.address(Component.CONTROL_PLANE, Port.CONTROL_PLANE),
            "--http-host", "0.0.0.0", "--http-port", str(Port.GATEWAY_HTTP), *token_flags(cluster),
            *picker_flags(cluster),
            *_client_auth(cluster), *_own_tickets(cluster), *client_flags(cluster, directory(Leaf.GATEWAY)),
        ),
        env=[*PYTHON_ENV],
        ports=[
            port("probes", Port.GATEWAY_HTTP),
            *([port("ext-proc", Port.EXT_PROC)] if gateway.inference_pool.enabled else []),
        ],
        volumeMounts=[
            {"name": "run", "mountPath": RUN_DIR},
            {"name": "tmp", "mountPath": "/tmp"},
            *_ticket_key_mount(cluster),
            *token_mounts(cluster),
            *mounts(cluster, Leaf.GATEWAY),
        ],
        startupProbe=http_probe(Port.GATEWAY_HTTP, "/healthz", **STARTED),
        readinessProbe=http_probe(Port.GATEWAY_HTTP, "/readyz", periodSeconds=2, timeoutSeconds=2),
        livenessProbe=http_probe(Port.GATEWAY_HTTP, "/healthz", **ALIVE),
    )  # fmt: skip
