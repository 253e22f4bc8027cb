"""Which pods may connect to which ports. Pure.

Ports of probes and metrics are open to all pods: they show no prompts and no program ids. vLLM serves its metrics on
the port of its calls, which must stay closed; the sidecar passes them on (`/engine/metrics`).
"""

from __future__ import annotations

from agentserving_operator.manifests.common import (
    CLIENT_LABEL,
    MANAGER,
    AgentServingCluster,
    Component,
    Manifest,
    Port,
    child_object,
    selector,
)
from agentserving_operator.manifests.inference_pool import gateway_peers


def _rule(ports: list[int], peers: list[Manifest] | None = None) -> Manifest:
    """Without `peers`, every pod may connect."""
    rule: Manifest = {"ports": [{"protocol": "TCP", "port": number} for number in ports]}
    if peers is not None:
        rule["from"] = peers
    return rule


def _policy(cluster: AgentServingCluster, component: Component, rules: list[Manifest]) -> Manifest:
    spec = {
        "podSelector": {"matchLabels": selector(cluster.name, component)},
        "policyTypes": ["Ingress"],
        "ingress": rules,
    }
    return child_object(cluster, "networking.k8s.io/v1", "NetworkPolicy", component, spec=spec)


def network_policy(cluster: AgentServingCluster, component: Component) -> Manifest:
    """The NetworkPolicy of one component."""
    parts = {part: {"podSelector": {"matchLabels": selector(cluster.name, part)}} for part in Component}
    clients = {"podSelector": {"matchLabels": {CLIENT_LABEL: "true"}}}
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": MANAGER}}}
    ext_proc = [Port.EXT_PROC] if cluster.spec.gateway.inference_pool.enabled else []
    rules = {
        Component.ENGINE: [
            _rule([Port.ENGINE], [parts[Component.GATEWAY], clients, *gateway_peers(cluster)]),
            _rule([Port.SIDECAR], [clients]),
            _rule([Port.SIDECAR_HTTP]),
        ],
        Component.CONTROL_PLANE: [
            _rule([Port.CONTROL_PLANE], [parts[Component.ENGINE], parts[Component.GATEWAY], clients, operator]),
            _rule([Port.CONTROL_PLANE_HTTP]),
        ],
        Component.GATEWAY: [_rule([Port.GATEWAY, Port.GATEWAY_HTTP, *ext_proc])],
        Component.ETCD: [
            # Members also need each other's client port: one that lost its volume replaces its former self there.
            _rule([Port.ETCD_CLIENT], [parts[Component.CONTROL_PLANE], parts[Component.ETCD]]),
            _rule([Port.ETCD_PEER], [parts[Component.ETCD]]),
            _rule([Port.ETCD_HTTP]),
        ],
    }
    return _policy(cluster, component, rules[component])
