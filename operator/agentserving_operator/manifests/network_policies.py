"""Which pods may connect to which ports, and to what the cluster's own pods may connect. Pure.

A part is named by its labels within the cluster's namespace, every other namespace by the label that the API server
gives it: a pod of another namespace reaches nothing here by giving itself labels. Ports of probes and metrics show no
prompts and no program ids, and are open to the namespaces of `network.metricsNamespaces`; a kubelet's probes need no
permission. vLLM serves its metrics on the port of its calls, which must stay closed; the sidecar passes them on
(`/engine/metrics`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from agentserving_operator.manifests.common import (
    CLIENT_LABEL,
    MANAGER,
    NAMESPACE_LABEL,
    AgentServingCluster,
    Component,
    Manifest,
    Port,
    child_object,
    keys_are_needed,
    namespaces,
    selector,
)
from agentserving_operator.manifests.inference_pool import gateway_peers
from agentserving_operator.spec.cluster import EngineType
from agentserving_operator.spec.network import Egress, ModelSource
from agentserving_operator.spec.store import StoreType

# A policy sees the port of the DNS pod, which is 5353 on OpenShift.
DNS_PORTS = (53, 5353)
# What "the internet" is not: private, shared, link-local (metadata services of clouds), loopback.
PRIVATE = {
    "0.0.0.0/0": ["10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"],
    "::/0": ["::1/128", "fc00::/7", "fe80::/10"],
}


def network_policy(cluster: AgentServingCluster, component: Component) -> Manifest:
    spec = {
        "podSelector": {"matchLabels": selector(cluster.name, component)},
        "policyTypes": ["Ingress"],
        "ingress": _ingress(cluster, component),
    }
    if cluster.spec.network.egress is Egress.CLOSED:
        spec["policyTypes"] = ["Ingress", "Egress"]
        spec["egress"] = [_dns(), *_egress(cluster, component)]
    return child_object(cluster, "networking.k8s.io/v1", "NetworkPolicy", component, spec=spec)


def _ports(numbers: Sequence[int], protocol: str = "TCP") -> list[Manifest]:
    return [{"protocol": protocol, "port": number} for number in numbers]


def _from(ports: Sequence[int], peers: list[Manifest] | None = None) -> list[Manifest]:
    """Without `peers`, every pod may connect; with an empty list, none."""
    if peers is None:
        return [{"ports": _ports(ports)}]
    return [{"ports": _ports(ports), "from": peers}] if peers else []


def _to(ports: Sequence[int], peers: list[Manifest] | None = None) -> Manifest:
    """Without `peers`, to any address."""
    return {"ports": _ports(ports), **({} if peers is None else {"to": peers})}


def _part(cluster: AgentServingCluster, component: Component) -> Manifest:
    return {"podSelector": {"matchLabels": selector(cluster.name, component)}}


def _ingress(cluster: AgentServingCluster, component: Component) -> list[Manifest]:
    parts = {part: _part(cluster, part) for part in Component}
    clients = {"podSelector": {"matchLabels": {CLIENT_LABEL: "true"}}}
    readers = namespaces(cluster.spec.network.metrics_namespaces)
    pool = cluster.spec.gateway.inference_pool.enabled
    callers = [parts[Component.ENGINE], parts[Component.GATEWAY], clients, *_operator(cluster)]
    # NCCL, gloo and ZeroMQ choose their ports themselves.
    group = [{"from": [parts[Component.ENGINE], parts[Component.ENGINE_WORKER]]}] if cluster.spans_nodes else []
    rules = {
        Component.ENGINE_WORKER: group,
        Component.ENGINE: [
            *group,
            *_from([Port.ENGINE], [parts[Component.GATEWAY], clients, *gateway_peers(cluster)]),
            *_from([Port.SIDECAR], [clients]),
            *_from([Port.SIDECAR_HTTP], readers),
        ],
        Component.CONTROL_PLANE: [
            *_from([Port.CONTROL_PLANE], callers),
            *_from([Port.CONTROL_PLANE_STREAMS], [parts[Component.ENGINE], parts[Component.GATEWAY]]),
            *(_from([Port.CONTROL_PLANE_CLIENTS], [clients]) if keys_are_needed(cluster) else []),
            *_from([Port.CONTROL_PLANE_HTTP], readers),
        ],
        # Agents are everywhere, and so are gateways of the user's own.
        Component.GATEWAY: [
            *_from([Port.GATEWAY, *([Port.EXT_PROC] if pool else [])]),
            *_from([Port.GATEWAY_HTTP], readers),
        ],
        Component.BATCHES: [
            *_from([Port.BATCHES], [parts[Component.GATEWAY]]),
            *_from([Port.BATCHES_HTTP], readers),
        ],
        Component.ETCD: [
            # Members also need each other's client port: one that lost its volume replaces its former self there.
            *_from([Port.ETCD_CLIENT], [parts[Component.CONTROL_PLANE], parts[Component.ETCD]]),
            *_from([Port.ETCD_PEER], [parts[Component.ETCD]]),
            *_from([Port.ETCD_HTTP], readers),
        ],
    }
    return rules[component]


def _operator(cluster: AgentServingCluster) -> list[Manifest]:
    """The operator's pods, in its namespace only. One that runs outside Kubernetes has no labels."""
    if not cluster.operator_namespace:
        return []
    return [
        {
            "namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: cluster.operator_namespace}},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": MANAGER}},
        }
    ]


def _dns() -> Manifest:
    """To any address: cluster DNS may be a pod of any name, or an address on the node."""
    return {"ports": [*_ports(DNS_PORTS, "UDP"), *_ports(DNS_PORTS)]}


def _egress(cluster: AgentServingCluster, component: Component) -> list[Manifest]:
    parts = {part: _part(cluster, part) for part in Component}
    planes = [Port.CONTROL_PLANE, Port.CONTROL_PLANE_STREAMS]
    to_control_plane = _to(planes, [parts[Component.CONTROL_PLANE]])
    group = [{"to": [parts[Component.ENGINE], parts[Component.ENGINE_WORKER]]}] if cluster.spans_nodes else []
    if component is Component.ENGINE:
        return [to_control_plane, *group, *_model_sources(cluster)]
    if component is Component.ENGINE_WORKER:
        return [*group, *_model_sources(cluster)]
    if component is Component.GATEWAY:
        to_batches = [_to([Port.BATCHES], [parts[Component.BATCHES]])] if cluster.spec.batches.enabled else []
        return [to_control_plane, _to([Port.ENGINE], [parts[Component.ENGINE]]), *to_batches]
    if component is Component.BATCHES:
        return [_to([Port.GATEWAY], [parts[Component.GATEWAY]])]
    if component is Component.ETCD:
        return [_to([Port.ETCD_CLIENT, Port.ETCD_PEER], [parts[Component.ETCD]])]
    if cluster.spec.store.type is StoreType.ETCD:
        return [_to([Port.ETCD_CLIENT], [parts[Component.ETCD]])]
    external = cluster.spec.store.external
    return [_to_endpoint(each) for each in (external.endpoints if external else ())]


def _model_sources(cluster: AgentServingCluster) -> list[Manifest]:
    if cluster.spec.engine.type is not EngineType.VLLM:
        return []
    return [_to([each.port], [_block(each)]) for each in cluster.spec.network.model_sources]


def _block(source: ModelSource) -> Manifest:
    private = PRIVATE.get(source.cidr)
    return {"ipBlock": {"cidr": source.cidr, **({"except": private} if private else {})}}


def _to_endpoint(endpoint: str) -> Manifest:
    """A policy cannot name a host, so an etcd that is given by name may be anywhere."""
    host, _, port = endpoint.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return _to([int(port)])
    return _to([int(port)], [{"ipBlock": {"cidr": f"{address}/{address.max_prefixlen}"}}])
