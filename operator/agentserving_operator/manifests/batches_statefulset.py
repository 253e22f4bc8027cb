"""The batch service: one pod with a volume. Pure.

One at a time: a second one would wait for the lock of the volume's directory. A StatefulSet ends the old pod first.
"""

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
    bytes_of,
    child_object,
    container,
    http_probe,
    keys_are_needed,
    labels,
    listening,
    pod,
    port,
    python,
    resources_of,
    secret_files,
    selector,
)
from agentserving_operator.manifests.engine_pod import GATEWAY_PUBLIC_KEY_FILE, KEY_DIR
from agentserving_operator.manifests.metrics_token import (
    metrics_token_flags,
    metrics_token_mounts,
    metrics_token_volumes,
)
from agentserving_operator.spec.parsing import SpecError

DATA_DIR = "/var/lib/agentserving"
FRONT_TLS_DIR = "/etc/agentserving/front-tls"
# Of the Secret of ticket keys, by which grants are verified.
_PUBLIC_KEYS = tuple(f"gateway-public{suffix}" for suffix in ("", ".next", ".previous"))
# Of the volume: room for results of batches that run.
FREE_PERCENT = 5


def check_batches(cluster: AgentServingCluster) -> None:
    """SpecError where clients have no keys: any of them could name any tenant."""
    if not keys_are_needed(cluster):
        raise SpecError(
            "spec.batches.enabled", "needs clients with keys: set auth.clients to Keys, or enabled to false"
        )


def batches_statefulset(cluster: AgentServingCluster) -> Manifest:
    """Its claim goes with the StatefulSet."""
    settings = cluster.spec.batches
    claim: Manifest = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": settings.size}}}
    if settings.storage_class_name is not None:
        claim["storageClassName"] = settings.storage_class_name
    spec = {
        "replicas": 1,
        "serviceName": cluster.child(Component.BATCHES),
        "updateStrategy": {"type": "RollingUpdate"},
        "selector": {"matchLabels": selector(cluster.name, Component.BATCHES)},
        "template": _template(cluster),
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
        "volumeClaimTemplates": [
            {"metadata": {"name": "data", "labels": labels(cluster.name, Component.BATCHES)}, "spec": claim}
        ],
    }
    return child_object(cluster, "apps/v1", "StatefulSet", Component.BATCHES, spec=spec)


def _template(cluster: AgentServingCluster) -> Manifest:
    return pod(
        cluster,
        Component.BATCHES,
        containers=[_container(cluster)],
        volumes=[
            {"name": "tmp", "emptyDir": {}},
            secret_files("ticket-key", cluster.ticket_key_name, _PUBLIC_KEYS),
            *metrics_token_volumes(cluster),
            *_front_tls_volume(cluster),
        ],
        # Calls in progress are made again by the next pod.
        terminationGracePeriodSeconds=30,
    )


def _container(cluster: AgentServingCluster) -> Manifest:
    settings, gateway = cluster.spec.batches, cluster.spec.gateway
    https = gateway.tls is not None
    url = f"{'https' if https else 'http'}://{cluster.address(Component.GATEWAY, gateway.service_port)}"
    free = bytes_of(settings.size) * FREE_PERCENT // 100
    return container(
        cluster,
        "batches",
        cluster.images.agentserving,
        resources_of(settings.resources, requests={"cpu": "100m", "memory": "128Mi"}),
        **python(
            "agentserving_batches",
            "--listen", listening(cluster, Port.BATCHES), "--data-dir", f"{DATA_DIR}/batches", "--gateway", url,
            *(["--gateway-certificate", f"{FRONT_TLS_DIR}/tls.crt"] if https else []),
            "--gateway-key-file", GATEWAY_PUBLIC_KEY_FILE, "--max-file-bytes", str(gateway.max_body_bytes),
            "--min-free-bytes", str(free),
            "--http-host", any_host(cluster), "--http-port", str(Port.BATCHES_HTTP), *metrics_token_flags(cluster),
        ),
        env=[*PYTHON_ENV],
        ports=[port("http", Port.BATCHES), port("probes", Port.BATCHES_HTTP)],
        volumeMounts=[
            {"name": "data", "mountPath": DATA_DIR},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "ticket-key", "mountPath": KEY_DIR, "readOnly": True},
            *metrics_token_mounts(cluster),
            *_front_tls_mount(cluster),
        ],
        startupProbe=http_probe(Port.BATCHES_HTTP, "/healthz", **STARTED),
        readinessProbe=http_probe(Port.BATCHES_HTTP, "/readyz", periodSeconds=2, timeoutSeconds=2),
        livenessProbe=http_probe(Port.BATCHES_HTTP, "/healthz", **ALIVE),
    )  # fmt: skip


def _front_tls_mount(cluster: AgentServingCluster) -> list[Manifest]:
    mount = {"name": "front-tls", "mountPath": FRONT_TLS_DIR, "readOnly": True}
    return [] if cluster.spec.gateway.tls is None else [mount]


def _front_tls_volume(cluster: AgentServingCluster) -> list[Manifest]:
    """The certificate that gateways show, without its key."""
    given = cluster.spec.gateway.tls
    return [] if given is None else [secret_files("front-tls", given.secret_name, ("tls.crt",))]
