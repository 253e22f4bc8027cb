"""The gateway's pod has a valid command line, and time to finish its calls."""

from __future__ import annotations

from agentserving_gateway.__main__ import Settings
from agentserving_operator.manifests.gateway_deployment import gateway_deployment
from agentserving_process import options
from support.operator_objects import make_cluster, only_container, pod_spec


def test_its_command_line_is_valid() -> None:
    one = only_container(gateway_deployment(make_cluster(gateway={"maxBodyBytes": 4096})))
    assert one["command"] == ["python", "-m", "agentserving_gateway"]
    given = options.parse(Settings, prog="test", argv=one["args"], environment={})
    assert (given.serving.listen, given.probes.http_host, given.probes.http_port) == ("0.0.0.0:8080", "0.0.0.0", 8081)
    assert given.leader.control_plane == "demo-control-plane.ns.svc:7070"
    assert given.serving.max_body_bytes == 4096


def test_a_leaving_gateway_may_finish_its_calls() -> None:
    made = gateway_deployment(make_cluster(gateway={"drainSeconds": 20}))
    arguments = only_container(made)["args"]
    assert arguments[arguments.index("--drain-s") + 1] == "20"
    # It drains after SIGTERM; a preStop hook would only delay that.
    assert "lifecycle" not in only_container(made)
    assert pod_spec(made)["terminationGracePeriodSeconds"] > 20


def test_a_new_gateway_starts_before_an_old_one_ends() -> None:
    spec = gateway_deployment(make_cluster(gateway={"replicas": 4}))["spec"]
    assert spec["replicas"] == 4
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
