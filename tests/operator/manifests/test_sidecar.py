"""The sidecar starts before its engine and ends after it, with a command line that it takes."""

from __future__ import annotations

from agentserving_operator.manifests.sidecar import sidecar_container
from agentserving_sidecar import __main__ as sidecar
from support.operator_objects import env_of, make_cluster


def test_it_takes_its_command_line() -> None:
    one = sidecar_container(make_cluster(engine={"drainSeconds": 77}))
    assert one["command"] == ["python", "-m", "agentserving_sidecar"]
    given = sidecar.parse(one["args"])
    assert given.control_plane == "demo-control-plane.ns.svc:7070"
    assert (given.engine_address, given.listen) == ("$(POD_IP):8000", "$(POD_IP):7071")
    assert (given.http_host, given.http_port, given.drain_s) == ("0.0.0.0", 7072, 77.0)
    assert {"POD_NAME", "POD_IP"} <= env_of(one).keys()


def test_it_is_a_native_sidecar_that_does_not_wait_for_its_engine() -> None:
    one = sidecar_container(make_cluster())
    assert one["restartPolicy"] == "Always"
    assert one["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert one["readinessProbe"]["httpGet"]["path"] == "/readyz"
