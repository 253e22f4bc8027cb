"""The sidecar container. It starts before the engine and ends after it, so that the last reports are sent. Pure."""

from __future__ import annotations

from agentserving_operator.manifests.common import (
    ALIVE,
    PYTHON_ENV,
    STARTED,
    AgentServingCluster,
    Component,
    Manifest,
    Port,
    any_host,
    container,
    http_probe,
    keys_are_needed,
    pod_address,
    port,
    python,
    resources_of,
)
from agentserving_operator.manifests.engine_pod import CHANNEL_DIR, KEY_DIR, PUBLIC_KEY_FILE
from agentserving_operator.manifests.metrics_token import metrics_token_flags, metrics_token_mounts
from agentserving_operator.manifests.tls import ENGINE_CURRENT_DIR, ENGINE_DIR, client_flags, to_engines_flags

STATE_DIR = "/var/lib/agentserving"


def sidecar_container(cluster: AgentServingCluster) -> Manifest:
    """A native sidecar: an init container that is always restarted. It registers the pod's addresses."""
    command = python(
        "agentserving_sidecar",
        "--engine-id", "$(POD_NAME)", "--engine-address", pod_address(cluster, Port.ENGINE),
        "--channel-dir", CHANNEL_DIR, "--state-dir", STATE_DIR,
        "--control-plane", cluster.address(Component.CONTROL_PLANE, Port.CONTROL_PLANE),
        "--listen", pod_address(cluster, Port.SIDECAR),
        "--http-host", any_host(cluster), "--http-port", str(Port.SIDECAR_HTTP), *metrics_token_flags(cluster),
        *(["--ticket-key-file", PUBLIC_KEY_FILE] if keys_are_needed(cluster) else []),
        "--stuck-s", str(cluster.spec.engine.stuck_seconds),
        "--drain-s", str(cluster.spec.engine.drain_seconds), *client_flags(cluster, ENGINE_CURRENT_DIR),
        *to_engines_flags(cluster, ENGINE_CURRENT_DIR),
    )  # fmt: skip
    resources = resources_of(
        cluster.spec.engine.sidecar_resources,
        requests={"cpu": "100m", "memory": "128Mi"},
        limits={"cpu": "2", "memory": "512Mi"},
    )
    return container(
        cluster,
        "sidecar",
        cluster.images.agentserving,
        resources,
        restartPolicy="Always",
        **command,
        env=[
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            *PYTHON_ENV,
        ],
        ports=[port("sidecar", Port.SIDECAR), port("sidecar-http", Port.SIDECAR_HTTP)],
        volumeMounts=[
            {"name": "channel", "mountPath": CHANNEL_DIR},
            {"name": "journal", "mountPath": STATE_DIR},
            {"name": "tmp", "mountPath": "/tmp"},
            *([{"name": "ticket-key", "mountPath": KEY_DIR, "readOnly": True}] if keys_are_needed(cluster) else []),
            *metrics_token_mounts(cluster),
            *([{"name": "engine-tls", "mountPath": ENGINE_DIR, "readOnly": True}] if cluster.spec.tls.on else []),
        ],
        # kubelet starts the engine after this probe succeeds, so it must not depend on the engine; readiness may.
        startupProbe=http_probe(Port.SIDECAR_HTTP, "/healthz", **STARTED),
        readinessProbe=http_probe(Port.SIDECAR_HTTP, "/readyz", periodSeconds=5, timeoutSeconds=5, failureThreshold=2),
        livenessProbe=http_probe(Port.SIDECAR_HTTP, "/healthz", **ALIVE),
    )
