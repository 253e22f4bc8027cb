"""The batch service of a cluster: on request, for gateways alone, with keys only."""

from __future__ import annotations

import pytest
from agentserving_operator.manifests import Component, Manifest, desired
from agentserving_operator.manifests.common import labels
from agentserving_operator.spec.parsing import SpecError
from support.network_connections import HOSTS
from support.network_policies import Host, allows
from support.operator_objects import make_cluster, only_container, pod_spec, value_after


def named(objects: list[Manifest], kind: str, name: str = "demo-batches") -> Manifest:
    (found,) = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def test_there_is_none_unless_it_is_asked_for() -> None:
    objects = desired(make_cluster())
    assert not [each for each in objects if "batches" in each["metadata"]["name"]]
    (envoy, _) = pod_spec(named(objects, "Deployment", "demo-gateway"))["containers"]
    assert "--batches" not in envoy["args"]


def test_gateways_and_the_service_find_each_other() -> None:
    objects = desired(make_cluster(batches={"enabled": True, "size": "10Gi", "storageClassName": "fast"}))
    (envoy, _) = pod_spec(named(objects, "Deployment", "demo-gateway"))["containers"]
    assert value_after(envoy["args"], "--batches") == "demo-batches.ns.svc:7090"
    assert named(objects, "Service")["spec"]["ports"][0]["targetPort"] == 7090
    workload = named(objects, "StatefulSet")
    arguments = only_container(workload)["args"]
    assert value_after(arguments, "--gateway") == "http://demo-gateway.ns.svc:80"
    assert value_after(arguments, "--min-free-bytes") == str(10 * 2**30 // 20)
    assert "--gateway-certificate" not in arguments
    (claim,) = workload["spec"]["volumeClaimTemplates"]
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}, "storageClassName": "fast",
    }  # fmt: skip


def test_it_has_public_keys_and_no_private_one() -> None:
    objects = desired(make_cluster(batches={"enabled": True}, gateway={"tls": {"secretName": "front"}}))
    workload = named(objects, "StatefulSet")
    assert value_after(only_container(workload)["args"], "--gateway") == "https://demo-gateway.ns.svc:443"
    mounted = {
        item["key"] for each in pod_spec(workload)["volumes"] for item in each.get("secret", {}).get("items", [])
    }
    assert mounted == {"gateway-public", "gateway-public.next", "gateway-public.previous", "tls.crt"}


def test_gateways_alone_reach_it_and_it_reaches_gateways_alone() -> None:
    batches = Host(name="batches", address="10.99.20.2", namespace="ns", labels=labels("demo", Component.BATCHES))
    policies = [each for each in desired(make_cluster(batches={"enabled": True})) if each["kind"] == "NetworkPolicy"]
    assert [name for name, host in HOSTS.items() if allows(policies, host, batches, 7090)] == ["gateway"]
    assert [name for name, host in HOSTS.items() if allows(policies, host, batches, 7091)] == ["prometheus"]
    ports = (7070, 7076, 8000, 7071, 8080, 2379, 443)
    reached = [(name, port) for name, host in HOSTS.items() for port in ports if allows(policies, batches, host, port)]
    assert reached == [("gateway", 8080)]


def test_without_keys_of_clients_it_is_refused() -> None:
    for spec in ({"auth": {"clients": "None"}}, {"tls": {"issuer": "None"}, "store": {"type": "Memory"}}):
        with pytest.raises(SpecError, match="needs clients with keys"):
            desired(make_cluster(batches={"enabled": True}, **spec))
