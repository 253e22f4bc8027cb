"""The sidecar starts before its engine and ends after it, with a command line that it accepts."""

from __future__ import annotations

from agentserving_operator.manifests.sidecar import sidecar_container
from agentserving_process import options
from agentserving_sidecar.settings import Settings
from support.operator_objects import env_of, make_cluster


def test_its_command_line_is_valid() -> None:
    one = sidecar_container(make_cluster(engine={"drainSeconds": 77, "stuckSeconds": 40}))
    assert one["command"] == ["python", "-m", "agentserving_sidecar"]
    given = options.parse(Settings, prog="sidecar", argv=one["args"], environment={})
    assert given.leader.control_plane == "demo-control-plane.ns.svc:7070"
    assert (given.engine.engine_address, given.sidecar.listen) == ("$(POD_IP):8000", "$(POD_IP):7071")
    assert (given.probes.http_host, given.probes.http_port) == ("0.0.0.0", 7072)
    assert (given.engine.drain_s, given.engine.stuck_s) == (77.0, 40.0)
    assert {"POD_NAME", "POD_IP"} <= env_of(one).keys()


def test_it_is_a_native_sidecar_whose_start_does_not_depend_on_the_engine() -> None:
    one = sidecar_container(make_cluster())
    assert one["restartPolicy"] == "Always"
    assert one["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert one["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_its_resources_have_defaults_that_the_user_overrides() -> None:
    default = sidecar_container(make_cluster())["resources"]
    assert {"cpu", "memory"} == default["requests"].keys() == default["limits"].keys()
    given = {"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}}
    assert sidecar_container(make_cluster(engine={"sidecarResources": given}))["resources"] == given
