"""Services, by which the components of a cluster and its clients find each other. Pure."""

from __future__ import annotations

from typing import Any

from agentserving_operator.manifests.common import (
    AgentServingCluster,
    Component,
    Manifest,
    Port,
    child_object,
    ip_families,
    selector,
    service_port,
)
from agentserving_operator.manifests.etcd_statefulset import peers_service


def _service(
    cluster: AgentServingCluster, component: Component, ports: list[Manifest], name: str = "", **spec: Any
) -> Manifest:
    whole = {"selector": selector(cluster.name, component), "ports": ports, **ip_families(cluster), **spec}
    return child_object(cluster, "v1", "Service", component, name, spec=whole)


def engine_service(cluster: AgentServingCluster) -> Manifest:
    """Headless: gives engine pods DNS names. Calls go to the addresses that sidecars register."""
    ports = [
        service_port("https" if cluster.spec.tls.engines else "http", Port.ENGINE, Port.ENGINE),
        service_port("sidecar", Port.SIDECAR, Port.SIDECAR),
        service_port("sidecar-http", Port.SIDECAR_HTTP, Port.SIDECAR_HTTP),
    ]
    return _service(cluster, Component.ENGINE, ports, clusterIP="None", publishNotReadyAddresses=True)


def control_plane_service(cluster: AgentServingCluster) -> Manifest:
    """For sidecars, gateways, the operator and administrators; for clients as well where they need no keys."""
    ports = [
        service_port("grpc", Port.CONTROL_PLANE, Port.CONTROL_PLANE),
        service_port("http", Port.CONTROL_PLANE_HTTP, Port.CONTROL_PLANE_HTTP),
    ]
    return _service(cluster, Component.CONTROL_PLANE, ports, type="ClusterIP")


def clients_service(cluster: AgentServingCluster) -> Manifest:
    """For clients with keys: a Service of its own, so that it may be exposed without the port of the parts."""
    ports = [service_port("grpc", Port.CONTROL_PLANE, Port.CONTROL_PLANE_CLIENTS)]
    return _service(
        cluster, Component.CONTROL_PLANE, ports, f"{cluster.child(Component.CONTROL_PLANE)}-clients", type="ClusterIP"
    )


def gateway_service(cluster: AgentServingCluster) -> Manifest:
    """The Service that agents call."""
    gateway = cluster.spec.gateway
    ports = [service_port("http" if gateway.tls is None else "https", gateway.service_port, Port.GATEWAY)]
    return _service(cluster, Component.GATEWAY, ports, type=gateway.service_type.value)


def batches_service(cluster: AgentServingCluster) -> Manifest:
    """For gateways, which pass files and batches on."""
    ports = [service_port("http", Port.BATCHES, Port.BATCHES)]
    return _service(cluster, Component.BATCHES, ports, type="ClusterIP")


def etcd_services(cluster: AgentServingCluster) -> list[Manifest]:
    """One for clients, and one that gives members their DNS names before they are ready."""
    client = service_port("client", Port.ETCD_CLIENT, Port.ETCD_CLIENT)
    peer = service_port("peer", Port.ETCD_PEER, Port.ETCD_PEER)
    return [
        _service(cluster, Component.ETCD, [client], type="ClusterIP"),
        _service(
            cluster, Component.ETCD, [client, peer], peers_service(cluster), clusterIP="None",
            publishNotReadyAddresses=True,
        ),
    ]  # fmt: skip


def gateway_url(cluster: AgentServingCluster) -> str:
    """Base URL for OpenAI clients inside the cluster."""
    gateway = cluster.spec.gateway
    host = f"{cluster.child(Component.GATEWAY)}.{cluster.namespace}.svc"
    scheme, usual = ("http", 80) if gateway.tls is None else ("https", 443)
    port = "" if gateway.service_port == usual else f":{gateway.service_port}"
    return f"{scheme}://{host}{port}/v1"
