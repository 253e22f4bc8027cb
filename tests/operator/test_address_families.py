"""Addresses of another family than the spec says are reported with the setting that helps."""

from __future__ import annotations

from typing import Any

import pytest
from agentserving_operator.manifests import AgentServingCluster, desired
from agentserving_operator.observe.address_families import family_trouble
from agentserving_operator.observe.reasons import Reason
from support.operator_objects import make_cluster


def pod(address: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "demo-engine-0"}, "spec": spec, "status": {"podIP": address} if address else {}}


def on(*families: str) -> AgentServingCluster:
    return make_cluster(network={"ipFamilies": list(families)})


@pytest.mark.parametrize(
    ("families", "address", "setting"),
    [((), "fd00::7", "[IPv6]"), (("IPv4", "IPv6"), "fd00::7", "[IPv6, IPv4]"), (("IPv6",), "10.0.0.7", "[IPv4]")],
)
def test_the_setting_that_helps_is_named(families: tuple[str, ...], address: str, setting: str) -> None:
    trouble = family_trouble(on(*families), [pod(""), pod(address)])
    assert trouble is not None
    assert trouble.reason is Reason.WRONG_IP_FAMILY
    assert address in trouble.message
    assert setting in trouble.message


@pytest.mark.parametrize(
    ("families", "address"), [((), "10.0.0.7"), (("IPv6",), "fd00::7"), (("IPv4", "IPv6"), "10.0.0.7"), ((), "")]
)
def test_nothing_is_said_when_all_is_well_or_nothing_known(families: tuple[str, ...], address: str) -> None:
    assert family_trouble(on(*families), [pod(address)]) is None
    assert family_trouble(on(), [pod("fd00::7", hostNetwork=True)]) is None


def test_families_reach_every_service_and_every_listener() -> None:
    network = {"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "PreferDualStack"}
    cluster = make_cluster(network=network, gateway={"inferencePool": {"enabled": True}})
    objects = desired(cluster)
    for service in (each for each in objects if each["kind"] == "Service"):
        assert network.items() <= service["spec"].items()
    pods = str([each["spec"]["template"] for each in objects if each["kind"] in ("Deployment", "StatefulSet")])
    assert "0.0.0.0" not in pods
    assert "'$(POD_IP):" not in pods


def test_without_families_the_api_server_chooses_and_pods_need_no_ipv6() -> None:
    objects = desired(make_cluster())
    assert not [each for each in objects if each["kind"] == "Service" and "ipFamil" in str(each)]
    assert "[::]" not in str(objects)
