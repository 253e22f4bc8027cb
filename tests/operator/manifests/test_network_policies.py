"""A port is open to the pods that need it, and to no others; and pods connect to what they need, and to nothing else.

The table of connections is evaluated here, and tried with real packets in test_network_enforcement.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from agentserving_operator.manifests import Component, Manifest, desired
from agentserving_operator.manifests.network_policies import network_policy
from support.network_connections import CONNECTIONS, HOSTS, OPERATOR_NAMESPACE, REFUSED
from support.network_policies import allows
from support.operator_objects import make_cluster, pod_spec


def policies(**spec: Any) -> list[Manifest]:
    cluster = replace(make_cluster(**spec), operator_namespace=OPERATOR_NAMESPACE)
    return [each for each in desired(cluster) if each["kind"] == "NetworkPolicy"]


@pytest.mark.parametrize(("source", "target", "port"), CONNECTIONS)
def test_pods_reach_the_ports_they_need(source: str, target: str, port: int) -> None:
    assert allows(policies(), HOSTS[source], HOSTS[target], port)


@pytest.mark.parametrize(("source", "target", "port"), REFUSED)
def test_other_connections_are_refused(source: str, target: str, port: int) -> None:
    assert not allows(policies(), HOSTS[source], HOSTS[target], port)


def test_the_clients_port_is_open_to_clients_only_with_keys() -> None:
    client, stranger, plane = HOSTS["client"], HOSTS["stranger"], HOSTS["control-plane"]
    with_keys = policies(auth={"clients": "Keys"})
    assert allows(with_keys, client, plane, 7075)
    assert not allows(with_keys, stranger, plane, 7075)
    assert not allows(policies(auth={"clients": "None"}), client, plane, 7075)


def test_no_peer_is_every_namespace() -> None:
    """A pod of any namespace can give itself any label, so that such a peer would be everybody."""
    pool = {"enabled": True, "gatewayNamespaces": ["gateways"]}
    for policy in (*policies(), *policies(gateway={"inferencePool": pool}), *policies(auth={"clients": "Keys"})):
        for rule in (*policy["spec"]["ingress"], *policy["spec"]["egress"]):
            for peer in (*rule.get("from", ()), *rule.get("to", ())):
                assert peer.get("namespaceSelector", None) != {}
                assert peer != {}
            # An empty list of peers means everybody.
            assert rule.get("from", None) != []
            assert rule.get("to", None) != []


def test_an_operator_outside_kubernetes_opens_nothing() -> None:
    rules = network_policy(make_cluster(), Component.CONTROL_PLANE)["spec"]["ingress"]
    assert "agentserving-operator" not in str(rules)


def test_metrics_are_closed_without_namespaces_and_egress_may_be_opened() -> None:
    engine, prometheus, internet = HOSTS["engine"], HOSTS["prometheus"], HOSTS["internet"]
    assert not allows(policies(network={"metricsNamespaces": []}), prometheus, engine, 7072)
    assert allows(policies(network={"metricsNamespaces": ["monitoring", "x"]}), prometheus, engine, 7072)
    assert allows(policies(network={"egress": "Open"}), engine, internet, 80)


def test_engines_load_models_from_where_the_spec_says() -> None:
    engine, stranger, internet = HOSTS["engine"], HOSTS["stranger"], HOSTS["internet"]
    mirror = policies(network={"modelSources": [{"cidr": f"{stranger.address}/32", "port": 8080}]})
    assert allows(mirror, engine, stranger, 8080)
    assert not allows(mirror, engine, internet, 443)
    for closed in ({"network": {"modelSources": []}}, {"engine": {"type": "Simulator"}}):
        assert not allows(policies(**closed), engine, internet, 443)


def test_a_control_plane_reaches_an_external_etcd() -> None:
    plane, etcd, internet = HOSTS["control-plane"], HOSTS["stranger"], HOSTS["internet"]

    def store(*endpoints: str) -> dict[str, Any]:
        return {"type": "ExternalEtcd", "external": {"endpoints": list(endpoints)}}

    by_address = policies(store=store(f"{etcd.address}:2379"))
    assert allows(by_address, plane, etcd, 2379)
    assert not allows(by_address, plane, internet, 2379)
    assert not allows(by_address, plane, etcd, 2380)
    # A policy cannot name a host.
    assert allows(policies(store=store("etcd.test:4001")), plane, internet, 4001)


@pytest.mark.parametrize("spec", [{}, {"auth": {"clients": "Keys"}}, {"gateway": {"inferencePool": {"enabled": True}}}])
def test_every_port_of_every_pod_has_a_rule(spec: dict[str, Any]) -> None:
    objects = desired(make_cluster(**spec))
    found: dict[str, Any] = {each["metadata"]["name"]: each for each in objects if each["kind"] == "NetworkPolicy"}
    for each in objects:
        if each["kind"] not in ("Deployment", "StatefulSet"):
            continue
        rules = found[each["metadata"]["name"]]["spec"]["ingress"]
        ruled = {port["port"] for rule in rules for port in rule["ports"]}
        containers = [*pod_spec(each)["containers"], *pod_spec(each).get("initContainers", [])]
        assert {port["containerPort"] for one in containers for port in one["ports"]} == ruled
