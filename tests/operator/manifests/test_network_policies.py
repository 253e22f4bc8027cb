"""A port is open to the pods that need it, and to no others."""

from __future__ import annotations

from typing import Any

from agentserving_operator.manifests import Component, desired
from agentserving_operator.manifests.common import CLIENT_LABEL, labels
from agentserving_operator.manifests.network_policies import network_policy
from support.operator_objects import make_cluster, pod_spec


def may_connect(source: dict[str, str], target: Component, port: int, *, same_namespace: bool = True) -> bool:
    """Decides as a network plug-in does."""
    for rule in network_policy(make_cluster(), target)["spec"]["ingress"]:
        if port not in [each["port"] for each in rule["ports"]]:
            continue
        if "from" not in rule:
            return True
        for peer in rule["from"]:
            namespace = same_namespace or "namespaceSelector" in peer
            if namespace and peer["podSelector"]["matchLabels"].items() <= source.items():
                return True
    return False


def part(component: Component) -> dict[str, str]:
    return labels("demo", component)


def test_pods_reach_the_ports_they_need() -> None:
    operator = {"app.kubernetes.io/name": "agentserving-operator"}
    assert may_connect(part(Component.GATEWAY), Component.ENGINE, 8000)
    assert may_connect(part(Component.ENGINE), Component.CONTROL_PLANE, 7070)
    assert may_connect(part(Component.GATEWAY), Component.CONTROL_PLANE, 7070)
    assert may_connect(operator, Component.CONTROL_PLANE, 7070, same_namespace=False)
    assert may_connect(part(Component.CONTROL_PLANE), Component.ETCD, 2379)
    assert may_connect(part(Component.ETCD), Component.ETCD, 2380)
    # To replace a member that lost its volume.
    assert may_connect(part(Component.ETCD), Component.ETCD, 2379)
    assert may_connect({CLIENT_LABEL: "true"}, Component.ENGINE, 7071)
    assert may_connect({}, Component.GATEWAY, 8080, same_namespace=False)


def test_other_pods_do_not() -> None:
    assert not may_connect({}, Component.ENGINE, 8000)
    assert not may_connect({CLIENT_LABEL: "true"}, Component.ENGINE, 8000, same_namespace=False)
    assert not may_connect(part(Component.GATEWAY), Component.ETCD, 2379)
    assert not may_connect(labels("other", Component.GATEWAY), Component.ENGINE, 8000)


def test_every_port_of_every_pod_has_a_rule() -> None:
    objects = desired(make_cluster())
    policies: dict[str, Any] = {each["metadata"]["name"]: each for each in objects if each["kind"] == "NetworkPolicy"}
    for each in objects:
        if each["kind"] not in ("Deployment", "StatefulSet"):
            continue
        rules = policies[each["metadata"]["name"]]["spec"]["ingress"]
        ruled = {port["port"] for rule in rules for port in rule["ports"]}
        containers = [*pod_spec(each)["containers"], *pod_spec(each).get("initContainers", [])]
        assert {port["containerPort"] for one in containers for port in one["ports"]} == ruled
