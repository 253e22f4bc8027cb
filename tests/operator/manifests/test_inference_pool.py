"""The InferencePool exists on demand, selects the engines and refers to a Service that reaches the picker."""

from __future__ import annotations

import pytest
from agentserving_operator.errors import RefusedError
from agentserving_operator.manifests import Component, desired
from agentserving_operator.manifests.inference_pool import endpoint_picker_service, goes_with, inference_pool
from agentserving_operator.manifests.network_policies import network_policy
from agentserving_operator.observe.owned import refused
from agentserving_operator.observe.reasons import Reason
from support.operator_objects import make_cluster, pod_spec, value_after

ON = {"inferencePool": {"enabled": True}}


def test_nothing_is_rendered_unless_asked() -> None:
    objects = desired(make_cluster())
    assert not [each for each in objects if each["kind"] == "InferencePool" or "endpoint-picker" in str(each)]
    assert not [each for each in objects if "ext-proc" in str(each)]


def test_the_pool_selects_engine_pods_and_their_port() -> None:
    cluster = make_cluster(gateway=ON)
    (engines,) = [
        each for each in desired(cluster) if each["kind"] == "StatefulSet" and "engine" in str(each["spec"]["selector"])
    ]
    pool = inference_pool(cluster)
    assert pool["apiVersion"] == "inference.networking.k8s.io/v1"
    assert pool["metadata"]["name"] == "demo"
    assert pool["spec"]["selector"]["matchLabels"].items() <= engines["spec"]["template"]["metadata"]["labels"].items()
    containers = pod_spec(engines)["containers"]
    listened = {each["containerPort"] for one in containers for each in one["ports"]}
    assert {each["number"] for each in pool["spec"]["targetPorts"]} <= listened


@pytest.mark.parametrize(("tls", "given"), [(True, "self-signed"), (False, "none")])
def test_its_endpoint_picker_is_the_pickers_port(tls: bool, given: str) -> None:
    cluster = make_cluster(gateway={"inferencePool": {"enabled": True, "tls": tls, "failureMode": "FailClose"}})
    reference, service = inference_pool(cluster)["spec"]["endpointPickerRef"], endpoint_picker_service(cluster)
    assert (reference["kind"], reference["name"]) == ("Service", service["metadata"]["name"])
    assert reference["failureMode"] == "FailClose"
    (port,) = service["spec"]["ports"]
    assert reference["port"]["number"] == port["port"]
    (gateway,) = [
        each for each in desired(cluster) if each["kind"] == "Deployment" and "gateway" in each["metadata"]["name"]
    ]
    (picker,) = [each for each in pod_spec(gateway)["containers"] if each["name"] == "picker"]
    assert port["targetPort"] in [each["containerPort"] for each in picker["ports"]]
    assert value_after(picker["args"], "--ext-proc-listen") == f"0.0.0.0:{port['targetPort']}"
    assert value_after(picker["args"], "--ext-proc-tls") == given


@pytest.mark.parametrize(("clients", "mode"), [("Keys", "FailClose"), ("None", "FailOpen")])
def test_a_gateway_that_finds_no_picker_to_ask_for_a_key_refuses_the_call(clients: str, mode: str) -> None:
    cluster = make_cluster(auth={"clients": clients}, gateway={"inferencePool": {**ON["inferencePool"]}})
    assert inference_pool(cluster)["spec"]["endpointPickerRef"]["failureMode"] == mode


def test_gateways_reach_the_picker_and_gateways_of_named_namespaces_and_addresses_the_engines() -> None:
    pool = {"enabled": True, "gatewayCidrs": ["10.1.0.0/24"], "gatewayNamespaces": ["istio-system"]}
    cluster = make_cluster(gateway={"inferencePool": pool})
    picker = network_policy(cluster, Component.GATEWAY)["spec"]["ingress"][0]
    assert 9002 in [each["port"] for each in picker["ports"]]
    peers = network_policy(cluster, Component.ENGINE)["spec"]["ingress"][0]["from"]
    assert {"ipBlock": {"cidr": "10.1.0.0/24"}} in peers
    chosen = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["istio-system"]}
    assert {"namespaceSelector": {"matchExpressions": [chosen]}} in peers


def test_the_pool_goes_with_the_pickers_service() -> None:
    cluster = make_cluster(gateway=ON)
    assert goes_with(cluster, endpoint_picker_service(cluster)) == ("InferencePool", "demo")
    others = [each for each in desired(cluster) if each["metadata"]["name"] != "demo-endpoint-picker"]
    assert not any(goes_with(cluster, each) for each in others)


def test_a_cluster_without_the_extension_says_what_to_install() -> None:
    trouble = refused("InferencePool", "demo", RefusedError(404, "", "404 page not found"))
    assert trouble.reason is Reason.INFERENCE_EXTENSION_MISSING
    assert "inference.networking.k8s.io/v1" in trouble.message
