"""The Deployment of the gateways: in each pod an Envoy and its picker. Pure."""

from __future__ import annotations

from agentserving.contract import program_headers

from agentserving_operator.manifests.common import (
    ALIVE,
    PYTHON_ENV,
    STARTED,
    AgentServingCluster,
    Component,
    Manifest,
    Port,
    any_host,
    by_https,
    child_object,
    container,
    http_probe,
    keys_are_needed,
    listening,
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
from agentserving_operator.manifests.metrics_token import (
    metrics_token_flags,
    metrics_token_mounts,
    metrics_token_volumes,
)
from agentserving_operator.manifests.tls import Leaf, client_flags, directory, mounts, to_engines_flags, volumes
from agentserving_operator.manifests.web_tokens import token_flags, token_mounts, token_volumes
from agentserving_operator.spec.parsing import plain
from agentserving_operator.spec.parts import Resources

# Sockets and files that Envoy and the picker share.
RUN_DIR = "/run/agentserving"
# The certificate that clients see.
FRONT_TLS_DIR = "/etc/agentserving/front-tls"
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
            *metrics_token_volumes(cluster),
            *_front_tls_volume(cluster),
            *volumes(cluster, Leaf.GATEWAY, *_shown_to_engines(cluster)),
        ],
        terminationGracePeriodSeconds=gateway.drain_seconds + GRACE_AFTER_DRAIN_S,
        topologySpreadConstraints=spread(cluster, Component.GATEWAY),
    )


def _envoy(cluster: AgentServingCluster) -> Manifest:
    gateway = cluster.spec.gateway
    https = gateway.tls is not None

    def probe(**rest: int) -> Manifest:
        found = http_probe(Port.GATEWAY, "/health", **rest)
        return by_https(found) if https else found

    return container(
        cluster,
        "gateway",
        cluster.images.agentserving,
        resources_of(gateway.resources, requests={"cpu": "250m", "memory": "128Mi"}),
        **python(
            "agentserving_gateway.front",
            "--listen", listening(cluster, Port.GATEWAY), "--run-dir", RUN_DIR, *_client_auth(cluster),
            "--max-body-bytes", str(gateway.max_body_bytes), *_heap(gateway.resources), *_front_tls(cluster),
            *_to_engines(cluster), *_hold(cluster), *_batches(cluster), *_program_headers(cluster),
        ),
        env=[*PYTHON_ENV],
        ports=[port("https" if https else "http", Port.GATEWAY)],
        volumeMounts=[
            {"name": "run", "mountPath": RUN_DIR},
            *_front_tls_mount(cluster),
            *mounts(cluster, *_shown_to_engines(cluster)),
        ],
        # A SIGTERM alone cuts Envoy's streams.
        lifecycle=_before_stop(cluster),
        startupProbe=probe(**STARTED),
        readinessProbe=probe(periodSeconds=2, timeoutSeconds=2),
        livenessProbe=probe(**ALIVE),
    )  # fmt: skip


def _before_stop(cluster: AgentServingCluster, *flags: str) -> Manifest:
    drain = ["python", "-m", "agentserving_gateway.drain", "--run-dir", RUN_DIR]
    return {"preStop": {"exec": {"command": [*drain, "--drain-s", str(cluster.spec.gateway.drain_seconds), *flags]}}}


def _batches(cluster: AgentServingCluster) -> list[str]:
    if not cluster.spec.batches.enabled:
        return []
    return ["--batches", cluster.address(Component.BATCHES, Port.BATCHES)]


def _front_tls(cluster: AgentServingCluster) -> list[str]:
    if cluster.spec.gateway.tls is None:
        return []
    return ["--front-cert", f"{FRONT_TLS_DIR}/tls.crt", "--front-key", f"{FRONT_TLS_DIR}/tls.key"]


def _front_tls_mount(cluster: AgentServingCluster) -> list[Manifest]:
    mount = {"name": "front-tls", "mountPath": FRONT_TLS_DIR, "readOnly": True}
    return [] if cluster.spec.gateway.tls is None else [mount]


def _front_tls_volume(cluster: AgentServingCluster) -> list[Manifest]:
    """Optional: an Envoy that misses its certificate says so, which a pod that cannot mount a Secret does not."""
    given = cluster.spec.gateway.tls
    return [] if given is None else [secret_files("front-tls", given.secret_name, ("tls.crt", "tls.key"))]


def _shown_to_engines(cluster: AgentServingCluster) -> tuple[Leaf, ...]:
    """The certificate that Envoy and the picker show engines. It has no role: Envoy, which reads what strangers send,
    needs none at control planes."""
    return (Leaf.CLIENT,) if cluster.spec.tls.engines else ()


def _to_engines(cluster: AgentServingCluster) -> list[str]:
    return to_engines_flags(cluster, directory(Leaf.CLIENT))


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


def _hold(cluster: AgentServingCluster) -> list[str]:
    """Where engines may be scaled to zero, calls wait until there is one again."""
    autoscaling = cluster.spec.engine.autoscaling
    if autoscaling is None or autoscaling.least:
        return []
    return ["--hold-s", str(autoscaling.hold_seconds)]


def _program_headers(cluster: AgentServingCluster) -> list[str]:
    """For Envoy and the picker. Flags are given only where they are needed: images may be older than the operator."""
    gateway = cluster.spec.gateway
    added = [
        program_headers.ProgramHeader(label=program_headers.CONFIGURED, program=each.name, parent=each.parent or "")
        for each in gateway.program_headers
    ]
    found = ["--program-headers", program_headers.text_of(added)] if added else []
    if gateway.ignored_program_headers:
        found += ["--ignored-program-headers", ",".join(gateway.ignored_program_headers)]
    return found


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
            "--http-host", any_host(cluster), "--http-port", str(Port.GATEWAY_HTTP), *metrics_token_flags(cluster),
            *picker_flags(cluster), *_hold(cluster), *_program_headers(cluster),
            *([] if gateway.group_by_content else ["--group-by-content", "false"]),
            *_client_auth(cluster), *token_flags(cluster), *_own_tickets(cluster), *_front_tls(cluster),
            *client_flags(cluster, directory(Leaf.GATEWAY)), *_to_engines(cluster),
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
            *metrics_token_mounts(cluster),
            *_front_tls_mount(cluster),
            *mounts(cluster, Leaf.GATEWAY, *_shown_to_engines(cluster)),
        ],
        # While Envoy is there, requests need it.
        lifecycle=_before_stop(cluster, "--until-gone", "true"),
        startupProbe=http_probe(Port.GATEWAY_HTTP, "/healthz", **STARTED),
        readinessProbe=http_probe(Port.GATEWAY_HTTP, "/readyz", periodSeconds=2, timeoutSeconds=2),
        livenessProbe=http_probe(Port.GATEWAY_HTTP, "/healthz", **ALIVE),
    )  # fmt: skip
