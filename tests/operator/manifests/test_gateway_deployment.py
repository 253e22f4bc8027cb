"""The gateway's pod starts the real gateway, and leaves late."""

from __future__ import annotations

from agentserving_gateway import __main__ as gateway
from agentserving_operator.manifests.gateway_deployment import gateway_deployment
from support.operator_objects import make_cluster, only_container, pod_spec


def test_it_takes_its_command_line() -> None:
    one = only_container(gateway_deployment(make_cluster(gateway={"maxBodyBytes": 4096})))
    assert one["command"] == ["python", "-m", "agentserving_gateway"]
    given = gateway.parse(one["args"])
    assert (given.listen, given.http_host, given.http_port) == ("0.0.0.0:8080", "0.0.0.0", 8081)
    assert given.control_plane == "demo-control-plane.ns.svc:7070"
    assert given.max_body_bytes == 4096


def test_calls_run_on_while_it_leaves() -> None:
    made = gateway_deployment(make_cluster(gateway={"drainSeconds": 20}))
    arguments = only_container(made)["args"]
    assert arguments[arguments.index("--drain-s") + 1] == "20"
    # It drains by itself when it is told to end: a hook before that would only delay it.
    assert "lifecycle" not in only_container(made)
    assert pod_spec(made)["terminationGracePeriodSeconds"] > 20


def test_a_new_one_is_there_before_an_old_one_goes() -> None:
    spec = gateway_deployment(make_cluster(gateway={"replicas": 4}))["spec"]
    assert spec["replicas"] == 4
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
