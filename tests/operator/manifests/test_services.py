"""Services point at ports that are listened on."""

from __future__ import annotations

import pytest
from agentserving_operator.manifests import desired
from agentserving_operator.manifests.services import engine_service, gateway_service, gateway_url
from support.operator_objects import make_cluster, pod_spec


@pytest.mark.parametrize(("clients", "count"), [("None", 5), ("Keys", 6)])
def test_every_service_targets_a_port_of_the_pods_it_selects(clients: str, count: int) -> None:
    objects = desired(make_cluster(auth={"clients": clients}))
    workloads = [each for each in objects if each["kind"] in ("Deployment", "StatefulSet")]
    services = [each for each in objects if each["kind"] == "Service"]
    assert len(services) == count
    for service in services:
        wanted = service["spec"]["selector"].items()
        (behind,) = [each for each in workloads if wanted <= each["spec"]["template"]["metadata"]["labels"].items()]
        containers = [*pod_spec(behind)["containers"], *pod_spec(behind).get("initContainers", [])]
        listened = {port["containerPort"] for one in containers for port in one["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= listened


def test_engines_have_dns_names_before_they_are_ready() -> None:
    spec = engine_service(make_cluster())["spec"]
    assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", True)


@pytest.mark.parametrize(
    ("port", "url"), [(80, "http://demo-gateway.ns.svc/v1"), (81, "http://demo-gateway.ns.svc:81/v1")]
)
def test_the_url_is_the_gateways(port: int, url: str) -> None:
    cluster = make_cluster(gateway={"port": port, "serviceType": "LoadBalancer"})
    service = gateway_service(cluster)
    assert gateway_url(cluster) == url
    assert service["spec"]["type"] == "LoadBalancer"
    assert service["spec"]["ports"][0]["port"] == port
