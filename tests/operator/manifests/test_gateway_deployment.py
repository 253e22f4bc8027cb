"""The gateway's pod has valid command lines, and time to finish its calls."""

from __future__ import annotations

from typing import Any

import pytest
from agentserving_gateway import __main__ as picker_main
from agentserving_gateway import drain, front
from agentserving_operator.manifests.gateway_deployment import gateway_deployment
from agentserving_operator.manifests.services import gateway_service, gateway_url
from agentserving_process import options
from support.operator_objects import make_cluster, pod_spec


def containers(**gateway: Any) -> dict[str, Any]:
    made = gateway_deployment(make_cluster(gateway=gateway))
    return {one["name"]: one for one in pod_spec(made)["containers"]}


def test_their_command_lines_are_valid() -> None:
    made = containers(maxBodyBytes=4096)
    assert made["gateway"]["command"] == ["python", "-m", "agentserving_gateway.front"]
    envoy = options.parse(front.Settings, prog="test", argv=made["gateway"]["args"], environment={}).front
    assert (envoy.listen, envoy.max_body_bytes) == ("0.0.0.0:8080", 4096)
    assert made["picker"]["command"] == ["python", "-m", "agentserving_gateway"]
    given = options.parse(picker_main.Settings, prog="test", argv=made["picker"]["args"], environment={})
    assert (given.probes.http_host, given.probes.http_port) == ("0.0.0.0", 8081)
    assert given.leader.control_plane == "demo-control-plane.ns.svc:7070"
    assert given.serving.run_dir == envoy.run_dir


def test_a_leaving_gateway_may_finish_its_calls() -> None:
    made = containers(drainSeconds=20)
    # Envoy cuts its streams when it gets a SIGTERM, so something must drain it before; the picker outlives it.
    hooks = {name: made[name]["lifecycle"]["preStop"]["exec"]["command"] for name in ("gateway", "picker")}
    waits = {}
    for name, hook in hooks.items():
        assert hook[:3] == ["python", "-m", "agentserving_gateway.drain"]
        waits[name] = options.parse(drain.Settings, prog="test", argv=hook[3:], environment={}).drain
    given = options.parse(picker_main.Settings, prog="test", argv=made["picker"]["args"], environment={})
    assert waits["gateway"].drain_s == waits["picker"].drain_s == given.serving.drain_s == 20
    assert (waits["gateway"].until_gone, waits["picker"].until_gone) == (False, True)
    grace_s = pod_spec(gateway_deployment(make_cluster(gateway={"drainSeconds": 20})))["terminationGracePeriodSeconds"]
    assert grace_s > 20 + drain.SETTLE_S + drain.GONE_AFTER_S


def test_envoy_refuses_requests_before_its_memory_limit_kills_it() -> None:
    def heap(**resources: Any) -> int:
        arguments = containers(resources=resources)["gateway"]["args"]
        return options.parse(front.Settings, prog="test", argv=arguments, environment={}).front.max_heap_mib

    assert heap(limits={"memory": "512Mi"}) == 409
    assert heap() == 1024


def test_a_new_gateway_starts_before_an_old_one_ends() -> None:
    spec = gateway_deployment(make_cluster(gateway={"replicas": 4}))["spec"]
    assert spec["replicas"] == 4
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_clients_may_use_https_with_a_certificate_of_a_secret() -> None:
    cluster = make_cluster(gateway={"tls": {"secretName": "front"}})
    spec = pod_spec(gateway_deployment(cluster))
    made = {one["name"]: one for one in spec["containers"]}
    (volume,) = [each for each in spec["volumes"] if each["name"] == "front-tls"]
    assert volume["secret"]["secretName"] == "front"
    assert [each["key"] for each in volume["secret"]["items"]] == ["tls.crt", "tls.key"]
    envoy = options.parse(front.Settings, prog="test", argv=made["gateway"]["args"], environment={}).tls
    picker = options.parse(
        picker_main.Settings, prog="test", environment={},
        argv=[each for each in made["picker"]["args"] if not each.startswith("--ticket") and "ticket" not in each],
    ).tls  # fmt: skip
    assert envoy == picker
    for one in made.values():
        (mount,) = [each for each in one["volumeMounts"] if each["name"] == "front-tls"]
        assert str(envoy.front_cert) == f"{mount['mountPath']}/tls.crt"
        assert str(envoy.front_key) == f"{mount['mountPath']}/tls.key"
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert made["gateway"][kind]["httpGet"]["scheme"] == "HTTPS"
        assert "scheme" not in containers()["gateway"][kind]["httpGet"]


@pytest.mark.parametrize(
    ("gateway", "port", "url"),
    [
        ({}, 80, "http://demo-gateway.ns.svc/v1"),
        ({"port": 8080}, 8080, "http://demo-gateway.ns.svc:8080/v1"),
        ({"tls": {"secretName": "front"}}, 443, "https://demo-gateway.ns.svc/v1"),
        ({"tls": {"secretName": "front"}, "port": 80}, 80, "https://demo-gateway.ns.svc:80/v1"),
    ],
)
def test_its_service_and_its_url_say_which_port_and_scheme(gateway: dict[str, Any], port: int, url: str) -> None:
    cluster = make_cluster(gateway=gateway)
    (found,) = gateway_service(cluster)["spec"]["ports"]
    assert (found["port"], found["name"]) == (port, url.partition(":")[0])
    assert gateway_url(cluster) == url
