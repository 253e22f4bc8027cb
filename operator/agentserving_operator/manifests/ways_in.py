"""Ways into a cluster from outside of Kubernetes: an Ingress and an HTTPRoute, which lead to gateways' Service. Pure.

Nothing is rendered unless the spec asks for it. Kind HTTPRoute belongs to the Gateway API, which need not be installed.
"""

from __future__ import annotations

from agentserving_operator.manifests.common import AgentServingCluster, Component, Manifest, child_object
from agentserving_operator.spec.parsing import plain
from agentserving_operator.spec.ways_in import HttpRoute, Ingress

ROUTE_KIND = "HTTPRoute"
# An engine may think for minutes before its first token, and a stream last for hours.
_STREAM_S = 3600


def ways_in(cluster: AgentServingCluster) -> list[Manifest]:
    """The objects that the spec asks for."""
    gateway = cluster.spec.gateway
    found = []
    if gateway.ingress is not None:
        found.append(_ingress(cluster, gateway.ingress))
    if gateway.http_route is not None:
        found.append(_http_route(cluster, gateway.http_route))
    return found


def unlisted(cluster: AgentServingCluster) -> list[tuple[str, str]]:
    """(kind, name) of what an earlier spec may have asked for and a list of the cluster's objects does not show."""
    return [(ROUTE_KIND, cluster.name)] if cluster.spec.gateway.http_route is None else []


def _ingress(cluster: AgentServingCluster, wanted: Ingress) -> Manifest:
    gateway = cluster.spec.gateway
    service = {"name": cluster.child(Component.GATEWAY), "port": {"number": gateway.service_port}}
    paths = {"paths": [{"path": "/", "pathType": "Prefix", "backend": {"service": service}}]}
    spec: Manifest = {"rules": [{"host": host, "http": paths} for host in wanted.hosts] or [{"http": paths}]}
    if wanted.class_name is not None:
        spec["ingressClassName"] = wanted.class_name
    if wanted.tls_secret_name is not None:
        spec["tls"] = [{"hosts": list(wanted.hosts), "secretName": wanted.tls_secret_name}]
    made = child_object(
        cluster, "networking.k8s.io/v1", "Ingress", Component.GATEWAY, cluster.child(Component.GATEWAY), spec=spec
    )
    made["metadata"]["annotations"] = {**_nginx(cluster), **wanted.annotations}
    return made


def _nginx(cluster: AgentServingCluster) -> dict[str, str]:
    """What ingress-nginx would otherwise do to agents: bodies over 1 MB refused, streams cut after 60 s of silence."""
    prefix = "nginx.ingress.kubernetes.io/"
    found = {
        "proxy-body-size": str(cluster.spec.gateway.max_body_bytes),
        "proxy-read-timeout": str(_STREAM_S),
        "proxy-send-timeout": str(_STREAM_S),
    }
    if cluster.spec.gateway.tls is not None:
        found["backend-protocol"] = "HTTPS"
    return {prefix + name: value for name, value in found.items()}


def _http_route(cluster: AgentServingCluster, wanted: HttpRoute) -> Manifest:
    gateway = cluster.spec.gateway
    match: Manifest = {"path": {"type": "PathPrefix", "value": wanted.path_prefix}}
    if wanted.headers:
        match["headers"] = [{"type": "Exact", "name": name, "value": wanted.headers[name]} for name in wanted.headers]
    rule: Manifest = {
        "matches": [match],
        "backendRefs": [{"name": cluster.child(Component.GATEWAY), "port": gateway.service_port}],
    }
    if wanted.path_prefix != "/":
        rewrite = {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}
        rule["filters"] = [{"type": "URLRewrite", "urlRewrite": rewrite}]
    spec: Manifest = {"parentRefs": [plain(each) for each in wanted.parent_refs], "rules": [rule]}
    if wanted.hostnames:
        spec["hostnames"] = list(wanted.hostnames)
    return child_object(
        cluster, "gateway.networking.k8s.io/v1", ROUTE_KIND, Component.GATEWAY, cluster.name, spec=spec
    )  # fmt: skip
