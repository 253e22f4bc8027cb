"""The engines as an InferencePool, and the picker as its endpoint picker, for gateways that users already have. Pure.

Kind InferencePool belongs to the Gateway API Inference Extension, which need not be installed. Nothing here is rendered
unless the spec asks for it.
"""

from __future__ import annotations

from agentserving_operator.manifests.common import (
    AgentServingCluster,
    Component,
    Manifest,
    Port,
    child_object,
    keys_are_needed,
    namespaces,
    selector,
)
from agentserving_operator.spec.inference_pool import FailureMode

KIND = "InferencePool"


def endpoint_picker_name(cluster: AgentServingCluster) -> str:
    """Name of the picker's Service for gateways."""
    return f"{cluster.name}-endpoint-picker"


def endpoint_picker_service(cluster: AgentServingCluster) -> Manifest:
    """Its own Service: the gateways' may be a load balancer, which must not show this port."""
    port = {
        "name": "ext-proc",
        "port": Port.EXT_PROC,
        "targetPort": Port.EXT_PROC,
        "protocol": "TCP",
        "appProtocol": "http2",
    }
    spec = {"type": "ClusterIP", "selector": selector(cluster.name, Component.GATEWAY), "ports": [port]}
    return child_object(cluster, "v1", "Service", Component.GATEWAY, endpoint_picker_name(cluster), spec=spec)


def inference_pool(cluster: AgentServingCluster) -> Manifest:
    """An HTTPRoute refers to it by the cluster's name."""
    spec = {
        "selector": {"matchLabels": selector(cluster.name, Component.ENGINE)},
        "targetPorts": [{"number": Port.ENGINE}],
        "endpointPickerRef": {
            "group": "",
            "kind": "Service",
            "name": endpoint_picker_name(cluster),
            "port": {"number": Port.EXT_PROC},
            "failureMode": _failure_mode(cluster).value,
        },
    }
    return child_object(
        cluster, "inference.networking.k8s.io/v1", KIND, Component.ENGINE, cluster.name, spec=spec
    )  # fmt: skip


def _failure_mode(cluster: AgentServingCluster) -> FailureMode:
    """With keys a gateway must not choose an engine by itself: the picker is who asks for them."""
    return FailureMode.CLOSE if keys_are_needed(cluster) else cluster.spec.gateway.inference_pool.failure_mode


def goes_with(cluster: AgentServingCluster, live: Manifest) -> tuple[str, str] | None:
    """(kind, name) of the object that is deleted together with a live one: the pool goes with its picker's Service.

    Pools cannot be listed where their kind is not installed; the Service shows that there has been one.
    """
    is_picker = live["kind"] == "Service" and live["metadata"]["name"] == endpoint_picker_name(cluster)
    return (KIND, cluster.name) if is_picker else None


def picker_flags(cluster: AgentServingCluster) -> list[str]:
    """Flags that make the gateway's picker serve ext_proc; none without a pool."""
    pool = cluster.spec.gateway.inference_pool
    if not pool.enabled:
        return []
    return [
        "--ext-proc-listen", f"0.0.0.0:{Port.EXT_PROC}", "--ext-proc-tls", "self-signed" if pool.tls else "none",
        "--ext-proc-max-body-bytes", str(cluster.spec.gateway.max_body_bytes),
    ]  # fmt: skip


def gateway_peers(cluster: AgentServingCluster) -> list[Manifest]:
    """Gateways that may connect to engines: those of the namespaces and the addresses that the spec names."""
    pool = cluster.spec.gateway.inference_pool
    if not pool.enabled:
        return []
    return [*namespaces(pool.gateway_namespaces), *({"ipBlock": {"cidr": each}} for each in pool.gateway_cidrs)]
