"""What nobody serves is said, with what to do: an Ingress, a load balancer, a route."""

from __future__ import annotations

from typing import Any

from agentserving_operator.manifests import AgentServingCluster
from agentserving_operator.observe.entrances import entrances_of
from agentserving_operator.observe.reasons import Reason
from support.operator_objects import make_cluster

BALANCED = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "lb.example.com"}]}}}
ACCEPTED = [{"type": "Accepted", "status": "True"}, {"type": "ResolvedRefs", "status": "True"}]


def routed(*parents: tuple[dict[str, Any], list[dict[str, Any]]]) -> dict[tuple[str, str], dict[str, Any]]:
    entries = [{"parentRef": reference, "conditions": conditions} for reference, conditions in parents]
    return {("HTTPRoute", "demo"): {"status": {"parents": entries}}}


def with_route(*names: str) -> AgentServingCluster:
    return make_cluster(gateway={"httpRoute": {"parentRefs": [{"name": name} for name in names]}})


def test_addresses_of_ingress_and_load_balancer_are_named() -> None:
    cluster = make_cluster(gateway={"ingress": {}, "serviceType": "LoadBalancer"})
    objects = {("Ingress", "demo-gateway"): BALANCED, ("Service", "demo-gateway"): BALANCED}
    addresses, troubles = entrances_of(cluster, objects)
    assert not troubles
    assert addresses == ["Service 192.0.2.1", "Service lb.example.com", "Ingress 192.0.2.1", "Ingress lb.example.com"]


def test_without_a_controller_the_class_and_the_remedy_are_named() -> None:
    cluster = make_cluster(gateway={"ingress": {"className": "traefik"}, "serviceType": "LoadBalancer"})
    addresses, (service, ingress) = entrances_of(cluster, {})
    assert not addresses
    assert {service.reason, ingress.reason} == {Reason.NO_ADDRESS}
    assert "spec.gateway.serviceType" in service.message
    assert "class traefik" in ingress.message
    assert "kubectl get ingressclass" in ingress.message


def test_a_route_that_every_gateway_accepts_is_an_entrance() -> None:
    objects = routed(({"name": "a"}, ACCEPTED), ({"name": "b", "namespace": "ns"}, ACCEPTED))
    assert entrances_of(with_route("a", "b"), objects) == (["HTTPRoute a", "HTTPRoute b"], [])


def test_a_gateway_that_does_not_exist_says_nothing_and_so_is_named_here() -> None:
    _, (trouble,) = entrances_of(with_route("a", "b"), routed(({"name": "a"}, ACCEPTED)))
    assert trouble.reason is Reason.ROUTE_NOT_ACCEPTED
    assert "Gateway ns/b" in trouble.message
    assert "is there such a Gateway" in trouble.message


def test_a_gateways_own_words_are_quoted() -> None:
    refused = {"type": "Accepted", "status": "False", "reason": "NotAllowedByListeners", "message": "no namespace ns"}
    _, (trouble,) = entrances_of(with_route("a"), routed(({"name": "a"}, [refused, ACCEPTED[1]])))
    assert "Accepted is False: no namespace ns" in trouble.message
