"""The sidecar as a native sidecar: it starts before the engine and ends after it, so the last reports get out. Pure."""

from __future__ import annotations

from agentserving_operator.manifests.common import (
    ALIVE,
    PYTHON_ENV,
    STARTED,
    USER,
    AgentServingCluster,
    Component,
    Manifest,
    Port,
    container,
    http_probe,
    port,
    python,
)
from agentserving_operator.manifests.engine_pod import CHANNEL_DIR
from agentserving_operator.manifests.tls import Leaf, client_flags, mounts

STATE_DIR = "/var/lib/agentserving"


def sidecar_container(cluster: AgentServingCluster) -> Manifest:
    """An initContainer that restarts always. Its addresses are the pod's own: it tells them to the control plane."""
    command = python(
        "agentserving_sidecar",
        "--engine-id", "$(POD_NAME)", "--engine-address", f"$(POD_IP):{Port.ENGINE}",
        "--channel-dir", CHANNEL_DIR, "--state-dir", STATE_DIR,
        "--control-plane", cluster.address(Component.CONTROL_PLANE, Port.CONTROL_PLANE),
        "--listen", f"$(POD_IP):{Port.SIDECAR}",
        "--http-host", "0.0.0.0", "--http-port", str(Port.SIDECAR_HTTP),
        "--drain-s", str(cluster.spec.engine.drain_seconds), *client_flags(cluster, Leaf.ENGINE),
    )  # fmt: skip
    resources = {"requests": {"cpu": "100m", "memory": "128Mi"}}
    made = container(
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
            *mounts(cluster, Leaf.ENGINE),
        ],
        # The engine waits for this one, so it must not wait for the engine: that is what readiness is for.
        startupProbe=http_probe(Port.SIDECAR_HTTP, "/healthz", **STARTED),
        readinessProbe=http_probe(Port.SIDECAR_HTTP, "/readyz", periodSeconds=5, timeoutSeconds=5, failureThreshold=2),
        livenessProbe=http_probe(Port.SIDECAR_HTTP, "/healthz", **ALIVE),
    )
    made["securityContext"] |= {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER}
    return made
